//! What the lanes of a warp do together, once all that are named have come.

use half::{bf16, f16};

use crate::fault::{Kind, Problem};
use crate::instruction::{Address, Half, Index, Joint, ReduceOp, ShuffleMode, VoteMode};
use crate::race::Access;
use crate::registers::{FULL, LANES, Register, lanes};
use crate::warp::{Site, Warp};

impl Warp {
    /// `members` are all here.
    pub fn perform(&mut self, what: &Joint, members: u32, site: &mut Site) -> Result<(), Problem> {
        match *what {
            Joint::Barrier => self.after_warp_barrier(members),
            Joint::Shuffle { mode, to, valid, from, lane, clamp } => {
                self.shuffle(mode, [to, from, lane, clamp], valid, members)?;
            }
            Joint::Vote { mode, to, from, negated } => {
                self.vote(mode, to, from, negated, members)?
            }
            Joint::Match { to, from } => {
                let mut values = [0; LANES];
                for lane in lanes(members) {
                    values[lane] = self.registers.lane(from, lane)?;
                }
                let alike = std::array::from_fn(|lane| {
                    lanes(members)
                        .filter(|&other| values[other] == values[lane])
                        .fold(0, |mask, other| mask | 1 << other)
                });
                self.registers.put_word(to, &alike, members);
            }
            Joint::Reduce { op, signed, to, from } => {
                let values = self.registers.words.get(from, members)?;
                let all = lanes(members).map(|lane| values[lane]);
                let result = all.reduce(|a, b| op.combine(a, b, signed)).unwrap_or(0);
                self.registers.put_word(to, &[result; LANES], members);
            }
            Joint::LoadMatrix { ref to, address, transposed } => {
                self.load_matrix(to, address, transposed, site)?;
            }
            Joint::Multiply { d, a, b, c, half } => self.multiply(d, a, b, c, half)?,
        }
        Ok(())
    }

    /// `registers` are target, source, lane and clamp, as PTX names them in the section on `shfl`.
    fn shuffle(
        &mut self,
        mode: ShuffleMode,
        registers: [Index; 4],
        valid: Option<Index>,
        members: u32,
    ) -> Result<(), Problem> {
        let [to, from, by, clamp] = registers;
        let values = *self.registers.words.get(from, members)?;
        let by = *self.registers.words.get(by, members)?;
        let clamp = *self.registers.words.get(clamp, members)?;
        let (mut out, mut is_valid) = ([0; LANES], 0);
        for lane in lanes(members) {
            let (by, segment) = (by[lane] & 31, clamp[lane] >> 8 & 31);
            let here = lane as u32;
            let last = here & segment | clamp[lane] & 31 & !segment;
            let (other, inside) = match mode {
                ShuffleMode::Xor => (here ^ by, here ^ by <= last),
                ShuffleMode::Down => (here + by, here + by <= last),
                ShuffleMode::Up => (here.wrapping_sub(by), here as i32 - by as i32 >= last as i32),
                ShuffleMode::Index => {
                    let other = here & segment | by & !segment;
                    (other, other <= last)
                }
            };
            let other = if inside { other as usize } else { lane };
            if members >> other & 1 == 0 {
                let detail =
                    format!("reads lane {other}, which the mask {members:#010x} leaves out");
                return Err(Problem::new(Kind::Warp, detail).of_lane(lane));
            }
            out[lane] = values[other];
            is_valid |= u32::from(inside) << lane;
        }
        self.registers.put_word(to, &out, members);
        if let Some(valid) = valid {
            self.registers.put_predicate(valid, is_valid, members);
        }
        Ok(())
    }

    fn vote(
        &mut self,
        mode: VoteMode,
        to: Index,
        from: Index,
        negated: bool,
        members: u32,
    ) -> Result<(), Problem> {
        let bits = *self.registers.predicates.get(from, members)?;
        let yes = members & if negated { !bits } else { bits };
        let all = |truth: bool| if truth { FULL } else { 0 };
        match mode {
            VoteMode::Ballot => self.registers.put_word(to, &[yes; LANES], members),
            VoteMode::All => self.registers.put_predicate(to, all(yes == members), members),
            VoteMode::Any => self.registers.put_predicate(to, all(yes != 0), members),
            VoteMode::Uniform => {
                self.registers.put_predicate(to, all(yes == 0 || yes == members), members);
            }
        }
        Ok(())
    }

    /// Lane `l` gives the address of row `l % 8` of matrix `l / 8`, and gets of each matrix the
    /// elements `2 (l % 4)` and the next of row `l / 4`, of its transpose if that is asked for.
    fn load_matrix(
        &mut self,
        to: &[Index],
        address: Address,
        transposed: bool,
        site: &mut Site,
    ) -> Result<(), Problem> {
        let mut rows = [0; LANES];
        for (lane, row) in rows.iter_mut().enumerate().take(8 * to.len()) {
            *row = self.address(address, lane)?;
            if *row % 16 != 0 {
                let detail = format!("a row of a matrix at {row}");
                return Err(Problem::new(Kind::Misaligned, detail).of_lane(lane));
            }
        }
        for (matrix, &to) in to.iter().enumerate() {
            let row = |index: usize| rows[8 * matrix + index];
            let mut out = [0; LANES];
            for (lane, out) in out.iter_mut().enumerate() {
                let tag = self.shared_tag(site, lane);
                let pieces = if transposed {
                    [0, 1].map(|next| (row(2 * (lane % 4) + next) + 2 * (lane as u64 / 4), 2))
                } else {
                    let start = row(lane / 4) + 4 * (lane as u64 % 4);
                    [(start, 2), (start + 2, 2)]
                };
                for (place, (start, bytes)) in pieces.into_iter().enumerate() {
                    let read = site.shared.access(start, bytes, tag, Access::Read);
                    let read = read.map_err(|problem| problem.of_lane(lane))?;
                    *out |= u32::from(u16::from_le_bytes([read[0], read[1]])) << (16 * place);
                }
            }
            self.registers.put_word(to, &out, FULL);
        }
        Ok(())
    }

    /// m16n8k16: with `g = lane / 4` and `q = lane % 4`, a lane has rows `g` and `g + 8` of A (16 ×
    /// 16) and of C and D (16 × 8), columns `2q`, `2q + 1` and, of A, those 8 further; of B (16 ×
    /// 8) these as rows, in column `g`.
    fn multiply(
        &mut self,
        d: [Index; 4],
        a: [Index; 4],
        b: [Index; 2],
        c: [Index; 4],
        half: Half,
    ) -> Result<(), Problem> {
        let value = |word: u32, upper: usize| {
            let bits = (word >> (16 * upper)) as u16;
            match half {
                Half::Bf16 => bf16::from_bits(bits).to_f64(),
                Half::F16 => f16::from_bits(bits).to_f64(),
            }
        };
        let mut left = [[0f64; 16]; 16]; // [row, k]
        let mut right = [[0f64; 8]; 16]; // [k, column]
        let mut sums = [[0f64; 8]; 16]; // [row, column]
        for (place, &index) in a.iter().enumerate() {
            let words = self.registers.words.get(index, FULL)?;
            let (down, along) = (8 * (place % 2), 8 * (place / 2));
            for (lane, &word) in words.iter().enumerate() {
                for upper in 0..2 {
                    left[lane / 4 + down][2 * (lane % 4) + along + upper] = value(word, upper);
                }
            }
        }
        for (place, &index) in b.iter().enumerate() {
            let words = self.registers.words.get(index, FULL)?;
            for (lane, &word) in words.iter().enumerate() {
                for upper in 0..2 {
                    right[2 * (lane % 4) + 8 * place + upper][lane / 4] = value(word, upper);
                }
            }
        }
        let of_lane =
            |lane: usize, place: usize| (lane / 4 + 8 * (place / 2), 2 * (lane % 4) + place % 2);
        for (place, &index) in c.iter().enumerate() {
            let words = self.registers.words.get(index, FULL)?;
            for (lane, &word) in words.iter().enumerate() {
                let (row, column) = of_lane(lane, place);
                sums[row][column] = f64::from(f32::from_bits(word));
            }
        }
        for (sums, left) in sums.iter_mut().zip(&left) {
            for (x, right) in left.iter().zip(&right) {
                for (sum, y) in sums.iter_mut().zip(right) {
                    *sum += x * y;
                }
            }
        }
        for (place, &index) in d.iter().enumerate() {
            let out = std::array::from_fn(|lane| {
                let (row, column) = of_lane(lane, place);
                (sums[row][column] as f32).to_bits()
            });
            self.registers.put_word(index, &out, FULL);
        }
        Ok(())
    }

    /// Whether a condition holds in each of the lanes, and in how many.
    pub fn count(&self, from: Index, negated: bool, active: u32) -> Result<u32, Problem> {
        let bits = *self.registers.predicates.get(from, active)?;
        Ok((active & if negated { !bits } else { bits }).count_ones())
    }

    pub fn give(&mut self, to: Register, value: u64, active: u32) {
        lanes(active).for_each(|lane| self.registers.set_lane(to, lane, value));
    }
}

impl ReduceOp {
    fn combine(self, a: u32, b: u32, signed: bool) -> u32 {
        match self {
            Self::Add => a.wrapping_add(b),
            Self::Min if signed => (a as i32).min(b as i32) as u32,
            Self::Max if signed => (a as i32).max(b as i32) as u32,
            Self::Min => a.min(b),
            Self::Max => a.max(b),
            Self::And => a & b,
            Self::Or => a | b,
            Self::Xor => a ^ b,
        }
    }
}
