//! Are all frames there? Told by their ids, which the camera counts up by one a frame.
//!
//! Ids have 16 bits in GigE Vision 1 and begin again at 1, since 0 means something else there; in
//! GigE Vision 2 they have 64. Which it is shows when one is larger than 65535.

/// A jump over more frames than this is no loss of single frames any more.
pub const MOST_MISSING: u64 = 100;
const LAST_16_BIT: u64 = u16::MAX as u64;

/// Where a camera's ids stand.
#[derive(Debug, Default)]
pub struct Continuity {
    last: Option<u64>,
    /// Ids have 64 bits.
    wide: bool,
}

/// How a frame's id follows those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `missing` frames before it never came; mostly 0.
    Ahead { missing: u64 },
    /// It was here already, or its turn was.
    Behind,
    /// Neither loss nor order explains it.
    Lost { last: u64 },
}

impl Continuity {
    pub fn step(&mut self, id: u64) -> Step {
        self.wide |= id > LAST_16_BIT;
        let Some(last) = self.last.replace(id) else { return Step::Ahead { missing: 0 } };
        let ahead = self.distance(last, id);
        if (1..=MOST_MISSING as i64 + 1).contains(&ahead) {
            return Step::Ahead { missing: ahead as u64 - 1 };
        }
        if (-(MOST_MISSING as i64)..=0).contains(&ahead) {
            self.last = Some(last);
            return Step::Behind;
        }
        Step::Lost { last }
    }

    /// The id of the frame `count` before `id`.
    pub fn before(&self, id: u64, count: u64) -> u64 {
        if self.wide || id > count { id.saturating_sub(count) } else { LAST_16_BIT + id - count }
    }

    /// How many frames after `last` the frame `id` was taken; negative: before it.
    fn distance(&self, last: u64, id: u64) -> i64 {
        if self.wide {
            return id.wrapping_sub(last) as i64;
        }
        // Cameras that count through 0 all the same exist; their ids form a ring with one more.
        let ring = LAST_16_BIT as i64 + i64::from(last == 0 || id == 0);
        let ahead = (id as i64 - last as i64).rem_euclid(ring);
        if ahead <= ring / 2 { ahead } else { ahead - ring }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(ids: &[u64]) -> Vec<Step> {
        let mut continuity = Continuity::default();
        ids.iter().map(|&id| continuity.step(id)).collect()
    }

    const NEXT: Step = Step::Ahead { missing: 0 };

    #[test]
    fn ids_in_order_miss_nothing_also_over_the_wrap() {
        for ids in [
            &[1, 2, 3][..],
            &[65534, 65535, 1, 2],
            // Against the standard, but seen.
            &[65535, 0, 1],
            &[65534, 65535, 65536, 65537],
            &[1 << 40, (1 << 40) + 1],
            &[7],
        ] {
            assert!(steps(ids).iter().all(|&step| step == NEXT), "{ids:?} {:?}", steps(ids));
        }
    }

    #[test]
    fn a_gap_says_how_many_and_which_ids() {
        for (last, id, missing) in [
            (16, 18, vec![17]),
            (65533, 2, vec![65534, 65535, 1]),
            (65534, 65537, vec![65535, 65536]),
            (65535, 3, vec![1, 2]),
        ] {
            let mut continuity = Continuity::default();
            continuity.step(last);
            let count = missing.len() as u64;
            assert_eq!(continuity.step(id), Step::Ahead { missing: count });
            let ids: Vec<_> = (1..=count).rev().map(|back| continuity.before(id, back)).collect();
            assert_eq!(ids, missing, "{last} to {id}");
            assert_eq!(continuity.step(id + 1), NEXT);
        }
    }

    #[test]
    fn what_comes_again_or_late_is_behind_and_moves_nothing() {
        let behind = Step::Behind;
        assert_eq!(steps(&[5, 6, 6, 5, 7]), [NEXT, NEXT, behind, behind, NEXT]);
        assert_eq!(steps(&[65535, 1, 65535, 2]), [NEXT, NEXT, behind, NEXT]);
    }

    #[test]
    fn a_jump_is_a_loss_of_more_than_frames() {
        let limit = MOST_MISSING;
        assert_eq!(steps(&[1, limit + 2])[1], Step::Ahead { missing: limit });
        assert_eq!(steps(&[1, limit + 3])[1], Step::Lost { last: 1 });
        // A camera that was switched off and on begins at 1 again.
        assert_eq!(steps(&[5000, 1])[1], Step::Lost { last: 5000 });
        assert_eq!(steps(&[70_000, 1])[1], Step::Lost { last: 70_000 });
    }
}
