//! What lanes and threads do together, and memory: against plain loops.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use half::{bf16, f16};
use ptx_interpreter::{Fault, Memory, Module, Run, Shape};

/// A kernel of one block that reads `%in`, one word a thread into `%w`, and writes `%wo` to `%out`.
fn words(body: &str, input: &[u32], shared: &str) -> Result<(Vec<u32>, Run), Fault> {
    let text = format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n{shared}
        .visible .entry k(.param .u64 from, .param .u64 to)\n{{
        .reg .b16 %h<8>; .reg .b32 %w<16>; .reg .b32 %w, %wo, %tid, %at; .reg .b64 %in, %out, %d<8>;
        .reg .pred %p<8>;
        ld.param.u64 %in, [from]; ld.param.u64 %out, [to]; mov.u32 %tid, %tid.x;
        mad.wide.u32 %d0, %tid, 4, %in; mad.wide.u32 %out, %tid, 4, %out;
        ld.global.nc.b32 %w, [%d0];
        {body}
        st.global.b32 [%out], %wo; ret;\n}}\n"
    );
    let module = Module::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let mut memory = Memory::default();
    let bytes: Vec<u8> = input.iter().flat_map(|word| word.to_le_bytes()).collect();
    let (from, to) = (memory.alloc(bytes.len()), memory.alloc(bytes.len()));
    memory.upload(&bytes, from).unwrap();
    let shape = Shape { grid: [1; 3], block: [input.len() as u32, 1, 1], shared_bytes: 0 };
    let args = [from.to_le_bytes().to_vec(), to.to_le_bytes().to_vec()];
    let run = module.launch(&mut memory, "k", &shape, &args)?;
    let mut out = vec![0; bytes.len()];
    memory.download(to, &mut out)?;
    Ok((out.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect(), run))
}

fn run(body: &str, input: &[u32]) -> Vec<u32> {
    words(body, input, ".shared .align 16 .b8 tile[4096];")
        .unwrap_or_else(|fault| panic!("{body}\n{fault}"))
        .0
}

fn ramp(count: u32) -> Vec<u32> {
    (0..count).map(|i| 100 + i * 7).collect()
}

#[test]
fn shuffles_of_all_modes_and_widths() {
    let input = ramp(32);
    for width in [32u32, 16, 8, 4, 2] {
        // As the CUDA headers make it: the segment's mask on top, the last lane of it below.
        let segment = (32 - width) << 8;
        for by in [0u32, 1, 2, 3, 5, 8, 15, 16, 31] {
            for mode in ["bfly", "down", "up", "idx"] {
                let clamp = if mode == "up" { segment } else { segment | 31 };
                let body = format!(
                    "shfl.sync.{mode}.b32 %wo|%p0, %w, {by}, {clamp}, -1;
                     @!%p0 add.s32 %wo, %wo, 1000000;"
                );
                let got = run(&body, &input);
                for lane in 0..32u32 {
                    let first = lane / width * width;
                    let (other, inside) = match mode {
                        "bfly" => (lane ^ by, (lane ^ by) < first + width),
                        "down" => (lane + by, lane + by < first + width),
                        "up" => (lane.wrapping_sub(by), lane >= first + by),
                        _ => (first + by % width, true),
                    };
                    let want = if inside {
                        input[other as usize]
                    } else {
                        input[lane as usize] + 1_000_000
                    };
                    assert_eq!(got[lane as usize], want, "{mode} {by} width {width} lane {lane}");
                }
            }
        }
    }
    // Half a warp by itself, the mask naming it.
    let body = "mov.u32 %wo, 0; setp.lt.u32 %p1, %tid, 16;
        @%p1 shfl.sync.bfly.b32 %wo, %w, 1, 31, 0xffff;";
    let got = run(body, &input);
    assert_eq!(got[..3], [input[1], input[0], input[3]]);
    assert_eq!(got[16], 0);
    // Both halves of a warp at the same instruction, each with its own mask.
    let body = "setp.lt.u32 %p1, %tid, 16; selp.b32 %w1, 0xffff, 0xffff0000, %p1;
        shfl.sync.idx.b32 %wo, %w, %tid, 31, %w1;";
    assert_eq!(run(body, &input), input);
}

#[test]
fn votes_matches_and_reductions() {
    let input: Vec<u32> = (0..32).map(|i| [3, 5, 3, 0x8000_0001][i % 4]).collect();
    let set = |holds: fn(u32) -> bool| -> u32 {
        (0..32).filter(|&i| holds(input[i])).fold(0, |mask, i| mask | 1 << i)
    };
    let threes = set(|value| value == 3);
    let is_three = "setp.eq.u32 %p0, %w, 3;";
    let cases: &[(String, u32)] = &[
        (format!("{is_three} vote.sync.ballot.b32 %wo, %p0, -1;"), threes),
        (format!("{is_three} vote.sync.ballot.b32 %wo, !%p0, -1;"), !threes),
        (format!("{is_three} vote.sync.any.pred %p1, %p0, -1; selp.b32 %wo, 1, 0, %p1;"), 1),
        (format!("{is_three} vote.sync.all.pred %p1, %p0, -1; selp.b32 %wo, 1, 0, %p1;"), 0),
        (format!("{is_three} vote.sync.uni.pred %p1, %p0, -1; selp.b32 %wo, 1, 0, %p1;"), 0),
        ("redux.sync.add.u32 %wo, %w, -1;".into(), input.iter().fold(0, |a, &b| a.wrapping_add(b))),
        ("redux.sync.min.u32 %wo, %w, -1;".into(), 3),
        ("redux.sync.max.u32 %wo, %w, -1;".into(), 0x8000_0001),
        ("redux.sync.min.s32 %wo, %w, -1;".into(), 0x8000_0001),
        ("redux.sync.max.s32 %wo, %w, -1;".into(), 5),
        ("redux.sync.and.b32 %wo, %w, -1;".into(), 1),
        ("redux.sync.or.b32 %wo, %w, -1;".into(), 0x8000_0007),
        ("redux.sync.xor.b32 %wo, %w, -1;".into(), 0),
        ("activemask.b32 %wo;".into(), u32::MAX),
    ];
    for (body, want) in cases {
        assert_eq!(run(body, &input), [*want; 32], "{body}");
    }
    let got = run("match.any.sync.b32 %wo, %w, -1;", &input);
    for (lane, got) in got.into_iter().enumerate() {
        let alike = (0..32).filter(|&i| input[i] == input[lane]).fold(0, |mask, i| mask | 1 << i);
        assert_eq!(got, alike);
    }
    // Lanes of a branch are alone until they meet the others again.
    let body = "mov.u32 %wo, 0; setp.lt.u32 %p0, %tid, 5; @%p0 bra $few; bra $meet;
        $few: activemask.b32 %wo; $meet: activemask.b32 %w1; add.s32 %wo, %wo, %w1;";
    let got = run(body, &input);
    assert_eq!(got[0], u32::MAX.wrapping_add(31));
    assert_eq!(got[5], u32::MAX);
}

#[test]
fn barriers_of_the_block_count() {
    let input: Vec<u32> = (0..70).map(|i| u32::from(i % 3 == 0)).collect();
    let holds = "setp.ne.u32 %p0, %w, 0;";
    let cases = [
        ("barrier.cta.red.popc.aligned.u32 %wo, 0, %p0;", 24),
        ("bar.red.popc.u32 %wo, 0, !%p0;", 46),
        ("bar.red.or.pred %p1, 0, %p0; selp.b32 %wo, 1, 0, %p1;", 1),
        ("bar.red.and.pred %p1, 0, %p0; selp.b32 %wo, 1, 0, %p1;", 0),
        ("bar.sync 0, 70; barrier.sync 0; mov.u32 %wo, 4;", 4),
    ];
    for (body, want) in cases {
        assert_eq!(run(&format!("{holds} {body}"), &input), [want; 70], "{body}");
    }
    // Through shared memory to another warp, and back within one.
    let body = "mov.u32 %at, tile; mad.lo.s32 %at, %tid, 4, %at; st.shared.b32 [%at], %w;
        bar.sync 0; mov.u32 %w1, tile; sub.s32 %w2, 69, %tid; mad.lo.s32 %w1, %w2, 4, %w1;
        ld.shared.b32 %wo, [%w1];";
    let input = ramp(70);
    let (got, run_) = words(body, &input, ".shared .align 4 .b8 tile[280];").unwrap();
    assert_eq!(got, input.iter().rev().copied().collect::<Vec<_>>());
    assert_eq!(run_.barriers, 1);
    let body = "mov.u32 %at, tile; mad.lo.s32 %at, %tid, 4, %at; st.shared.b32 [%at], %w;
        bar.warp.sync -1; xor.b32 %w2, %tid, 1; mov.u32 %w1, tile; mad.lo.s32 %w1, %w2, 4, %w1;
        ld.shared.b32 %wo, [%w1];";
    let input = ramp(64);
    assert_eq!(run(body, &input)[..4], [input[1], input[0], input[3], input[2]]);
}

#[test]
fn loads_and_stores_of_every_width() {
    let input: Vec<u32> = (0..32).map(|i: u32| i.wrapping_mul(0x9e37_79b9) ^ 0x80f0_8001).collect();
    let at = "mov.u32 %at, tile; mad.lo.s32 %at, %tid, 16, %at;";
    let word = |i: usize| input[i];
    type Want<'a> = Box<dyn Fn(usize) -> u32 + 'a>;
    let cases: Vec<(&str, Want)> = vec![
        ("st.shared.u32 [%at+8], %w; ld.shared.u32 %wo, [%at+8];", Box::new(word)),
        ("st.shared.u8 [%at], %w; ld.shared.u8 %wo, [%at];", Box::new(|i| word(i) & 255)),
        (
            "st.shared.u8 [%at+3], %w; ld.shared.s8 %wo, [%at+3];",
            Box::new(|i| word(i) as i8 as u32),
        ),
        (
            "st.shared.u16 [%at+2], %w; ld.shared.s16 %wo, [%at+2];",
            Box::new(|i| word(i) as i16 as u32),
        ),
        (
            "cvt.u16.u32 %h0, %w; st.shared.u16 [%at], %h0; ld.shared.u16 %h1, [%at];
          cvt.u32.u16 %wo, %h1;",
            Box::new(|i| word(i) & 0xffff),
        ),
        (
            "st.shared.v2.u32 [%at], {%w, 7}; ld.shared.u64 %d1, [%at]; shr.u64 %d1, %d1, 4;
          cvt.u32.u64 %wo, %d1;",
            Box::new(|i| word(i) >> 4 | 7 << 28),
        ),
        (
            "st.shared.v4.b32 [%at], {1, 2, %w, 4}; ld.shared.v4.b32 {%w1, %w2, %w3, %w4}, [%at];
          sub.s32 %wo, %w3, %w2; add.s32 %wo, %wo, %w1; add.s32 %wo, %wo, %w4;",
            Box::new(|i| word(i).wrapping_add(3)),
        ),
        (
            "mov.b64 %d1, {%w, %w}; st.shared.v2.b64 [%at], {%d1, %d1};
          ld.shared.v2.b64 {%d2, %d3}, [%at]; cvt.u32.u64 %wo, %d3;",
            Box::new(word),
        ),
        // The same place by an address that says itself where it is.
        (
            "cvt.u64.u32 %d1, %at; cvta.shared.u64 %d1, %d1; st.b32 [%d1], %w;
             ld.shared.b32 %wo, [%at];",
            Box::new(word),
        ),
        ("ld.b32 %wo, [%d0];", Box::new(word)),
        (
            "cvta.to.global.u64 %d2, %in; mad.wide.u32 %d2, %tid, 4, %d2;
          ld.global.nc.L1::no_allocate.b32 %wo, [%d2];",
            Box::new(word),
        ),
        (
            "ld.global.nc.L1::evict_last.L2::128B.u16 %h0, [%d0]; cvt.u32.u16 %wo, %h0;",
            Box::new(|i| word(i) & 0xffff),
        ),
        ("ld.global.cg.u32 %w1, [%d0]; mov.u32 %wo, %w1;", Box::new(word)),
        ("@%p7 ld.global.u32 %w1, [0]; mov.u32 %wo, %w;", Box::new(word)),
    ];
    for (body, want) in cases {
        let got = run(&format!("setp.ne.u32 %p7, 0, 0; {at} {body}"), &input);
        let want: Vec<u32> = (0..32).map(want).collect();
        assert_eq!(got, want, "{body}");
    }
}

#[test]
fn atomics_by_every_thread() {
    let input: Vec<u32> = (0..64).map(|i| if i == 40 { 0xffff_fff0 } else { 5 + i }).collect();
    let start = "setp.eq.u32 %p0, %tid, 0; @%p0 st.shared.u32 [tile], 50; bar.sync 0;";
    let end = "bar.sync 0; ld.shared.u32 %wo, [tile];";
    let signed = |x: u32| x as i32;
    let all = input.iter().copied();
    let cases = [
        ("atom.shared.add.u32 %w1, [tile], %w;", all.clone().fold(50, u32::wrapping_add)),
        ("red.shared.min.u32 [tile], %w;", 5),
        ("red.shared.max.u32 [tile], %w;", 0xffff_fff0),
        ("red.shared.min.s32 [tile], %w;", 0xffff_fff0),
        ("atom.shared.max.s32 %w1, [tile], %w;", 68),
        ("red.shared.and.b32 [tile], %w;", all.clone().fold(50, |a, b| a & b)),
        ("red.shared.or.b32 [tile], %w;", all.clone().fold(50, |a, b| a | b)),
        ("atom.shared.xor.b32 %w1, [tile], %w;", all.clone().fold(50, |a, b| a ^ b)),
        ("atom.shared.cas.b32 %w1, [tile], 50, %w;", input[0]),
        ("atom.relaxed.cta.shared.exch.b32 %w1, [tile], 9;", 9),
    ];
    assert_eq!(signed(0xffff_fff0), -16);
    for (body, want) in cases {
        assert_eq!(run(&format!("{start} {body} {end}"), &input), [want; 64], "{body}");
    }
    // What was there before: each sum once.
    let body = format!("{start} atom.shared.add.u32 %wo, [tile], 1;");
    let mut got = run(&body, &input);
    got.sort_unstable();
    assert_eq!(got, (50..114).collect::<Vec<_>>());
    // 64 bits, as the search merges its winners.
    let body =
        "setp.eq.u32 %p0, %tid, 0; mov.b64 %d1, -1; @%p0 st.shared.u64 [tile+8], %d1; bar.sync 0;
        mov.b64 %d2, {%tid, %w}; atom.shared.min.u64 %d3, [tile+8], %d2; bar.sync 0;
        ld.shared.u64 %d4, [tile+8]; mov.b64 {%w1, %w2}, %d4; add.s32 %wo, %w1, %w2;";
    assert_eq!(run(body, &input), [5; 64]);
}

#[test]
fn copies_land_where_they_are_waited_for() {
    let input = ramp(32);
    let at = "mov.u32 %at, tile; mad.lo.s32 %at, %tid, 16, %at;
        shr.u32 %w5, %tid, 2; mad.wide.u32 %d2, %w5, 16, %in;";
    let end = "ld.shared.v4.b32 {%w1, %w2, %w3, %w4}, [%at]; add.s32 %wo, %w1, %w4;";
    let group = |i: usize| i / 4 * 4;
    let body = format!(
        "{at} cp.async.cg.shared.global [%at], [%d2], 16; cp.async.commit_group;
         cp.async.wait_group 0; {end}"
    );
    let want: Vec<u32> = (0..32).map(|i| input[group(i)] + input[group(i) + 3]).collect();
    assert_eq!(run(&body, &input), want);
    // Of 4 real bytes the rest is zeros; of none all.
    for (real, want) in [(4, (0..32).map(|i| input[group(i)]).collect()), (0, vec![0; 32])] {
        let body = format!(
            "{at} mov.u32 %w6, {real}; cp.async.ca.shared.global [%at], [%d2], 16, %w6;
             cp.async.wait_all; {end}"
        );
        assert_eq!(run(&body, &input), want, "{real}");
    }
    // Of two groups the first is there when one may still be on its way.
    let body = format!(
        "{at} cp.async.ca.shared.global [%at], [%d2], 4; cp.async.commit_group;
         cp.async.ca.shared.global [%at+4], [%d2+4], 4; cp.async.commit_group;
         cp.async.wait_group 1; ld.shared.b32 %wo, [%at]; cp.async.wait_group 0;"
    );
    assert_eq!(run(&body, &input), (0..32).map(|i| input[group(i)]).collect::<Vec<_>>());
}

/// Rows of eight 16-bit numbers in shared memory, the row's number above, the column's below.
fn matrices(load: &str, registers: &[&str]) -> Vec<Vec<u32>> {
    registers
        .iter()
        .map(|register| {
            // Thread t writes row t: (t << 8 | column), two columns a word.
            let body = format!(
                "mov.u32 %at, tile; mad.lo.s32 %at, %tid, 16, %at; shl.b32 %w1, %tid, 8;
                 mad.lo.s32 %w1, %w1, 65537, 65536;
                 add.s32 %w2, %w1, 131074; add.s32 %w3, %w1, 262148; add.s32 %w4, %w1, 393222;
                 st.shared.v4.b32 [%at], {{%w1, %w2, %w3, %w4}}; bar.warp.sync -1;
                 {load} mov.u32 %wo, {register};"
            );
            run(&body, &[0; 32])
        })
        .collect()
}

#[test]
fn matrices_are_spread_over_lanes() {
    let pair = |low: (usize, usize), high: (usize, usize)| {
        let one = |(row, column): (usize, usize)| (row << 8 | column) as u32;
        one(low) | one(high) << 16
    };
    let names = ["%w10", "%w11", "%w12", "%w13"];
    for count in [1, 2, 4] {
        let list = names[..count].join(", ");
        for (suffix, transposed) in [("", false), (".trans", true)] {
            let load = format!(
                "ldmatrix.sync.aligned.m8n8.x{count}{suffix}.shared.b16 {{{list}}}, [%at];"
            );
            let got = matrices(&load, &names[..count]);
            for (matrix, got) in got.iter().enumerate() {
                for (lane, &got) in got.iter().enumerate() {
                    let (row, column) = (lane / 4, 2 * (lane % 4));
                    let first = 8 * matrix;
                    let want = if transposed {
                        pair((first + column, row), (first + column + 1, row))
                    } else {
                        pair((first + row, column), (first + row, column + 1))
                    };
                    assert_eq!(got, want, "x{count}{suffix} matrix {matrix} lane {lane}");
                }
            }
        }
    }
}

/// D = A · B + C by the layout that PTX shows for m16n8k16, against three loops.
#[test]
fn products_of_matrices() {
    let mut state = 7u64;
    let mut any = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    for half in ["bf16", "f16"] {
        let rounded = |value: f32| match half {
            "bf16" => (bf16::from_f32(value).to_bits(), bf16::from_f32(value).to_f64()),
            _ => (f16::from_f32(value).to_bits(), f16::from_f32(value).to_f64()),
        };
        let a: Vec<_> = (0..256).map(|_| rounded(any())).collect(); // [16, 16]
        let b: Vec<_> = (0..128).map(|_| rounded(any())).collect(); // [16, 8]
        let c: Vec<f32> = (0..128).map(|_| any()).collect(); // [16, 8]
        let two = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        // Ten words a lane: four of A, two of B, four of C.
        let mut words_in = vec![];
        for lane in 0..32 {
            let (g, q) = (lane / 4, 2 * (lane % 4));
            for (down, along) in [(0, 0), (8, 0), (0, 8), (8, 8)] {
                let at = (g + down) * 16 + q + along;
                words_in.push(two(a[at].0, a[at + 1].0));
            }
            for down in [0, 8] {
                words_in.push(two(b[(q + down) * 8 + g].0, b[(q + down + 1) * 8 + g].0));
            }
            for (down, along) in [(0, 0), (0, 1), (8, 0), (8, 1)] {
                words_in.push(c[(g + down) * 8 + q + along].to_bits());
            }
        }
        let text = format!(
            ".version 9.0\n.target sm_80\n.visible .entry k(.param .u64 from, .param .u64 to)\n{{
            .reg .b32 %r<20>; .reg .b64 %d<3>;
            ld.param.u64 %d0, [from]; ld.param.u64 %d1, [to]; mov.u32 %r0, %tid.x;
            mad.wide.u32 %d0, %r0, 40, %d0; mad.wide.u32 %d1, %r0, 16, %d1;
            {}
            mma.sync.aligned.m16n8k16.row.col.f32.{half}.{half}.f32
              {{%r11, %r12, %r13, %r14}}, {{%r1, %r2, %r3, %r4}}, {{%r5, %r6}},
              {{%r7, %r8, %r9, %r10}};
            st.global.v4.b32 [%d1], {{%r11, %r12, %r13, %r14}}; ret;\n}}\n",
            (0..10)
                .map(|i| format!("ld.global.b32 %r{}, [%d0+{}];", i + 1, 4 * i))
                .collect::<String>()
        );
        let module = Module::parse(&text).unwrap();
        let mut memory = Memory::default();
        let bytes: Vec<u8> = words_in.iter().flat_map(|word| word.to_le_bytes()).collect();
        let (from, to) = (memory.alloc(bytes.len()), memory.alloc(512));
        memory.upload(&bytes, from).unwrap();
        let shape = Shape { grid: [1; 3], block: [32, 1, 1], shared_bytes: 0 };
        let args = [from.to_le_bytes().to_vec(), to.to_le_bytes().to_vec()];
        module.launch(&mut memory, "k", &shape, &args).unwrap();
        let mut out = vec![0; 512];
        memory.download(to, &mut out).unwrap();
        let out: Vec<f32> = out.as_chunks().0.iter().map(|&w| f32::from_le_bytes(w)).collect();
        for row in 0..16 {
            for column in 0..8 {
                let sum: f64 = (0..16).map(|k| a[row * 16 + k].1 * b[k * 8 + column].1).sum();
                let want = sum + f64::from(c[row * 8 + column]);
                let lane = row % 8 * 4 + column / 2;
                let got = out[lane * 4 + row / 8 * 2 + column % 2];
                // Rounded once.
                assert!((f64::from(got) - want).abs() < 1e-6, "{half} {row} {column}");
            }
        }
    }
}

#[test]
fn structs_are_read_by_their_places() {
    let text = "
        .version 9.0\n.target sm_80
        .visible .entry k(.param .u32 first, .param .align 8 .b8 levels[40], .param .u64 to)\n{
        .reg .b32 %r<9>; .reg .b64 %d<9>; .reg .f32 %f<2>;
        mov.b64 %d0, levels; mov.u32 %r0, %tid.x; mul.wide.u32 %d1, %r0, 16; add.s64 %d0, %d0, %d1;
        ld.param.v2.u32 {%r1, %r2}, [%d0+8]; ld.param.u64 %d2, [levels+32];
        ld.param.u32 %r3, [first];
        ld.param.s8 %r4, [levels+1];
        ld.param.u64 %d3, [to]; cvt.u32.u64 %r5, %d2; mul.wide.u32 %d4, %r0, 20;
        add.s64 %d3, %d3, %d4;
        st.global.u32 [%d3], %r1; st.global.u32 [%d3+4], %r2; st.global.u32 [%d3+8], %r3;
        st.global.u32 [%d3+12], %r4; st.global.u32 [%d3+16], %r5; ret;\n}\n";
    let module = Module::parse(text).unwrap();
    let bytes: Vec<usize> = module.params("k").unwrap().iter().map(|param| param.bytes).collect();
    assert_eq!(bytes, [4, 40, 8]);
    let mut memory = Memory::default();
    let to = memory.alloc(40);
    let mut levels: Vec<u8> = (0..40).collect();
    levels[1] = 0x80;
    let args = [77u32.to_le_bytes().to_vec(), levels.clone(), to.to_le_bytes().to_vec()];
    let shape = Shape { grid: [1; 3], block: [2, 1, 1], shared_bytes: 0 };
    module.launch(&mut memory, "k", &shape, &args).unwrap();
    let mut out = [0; 40];
    memory.download(to, &mut out).unwrap();
    let word = |at: usize| u32::from_le_bytes(levels[at..at + 4].try_into().unwrap());
    for (thread, got) in out.chunks(20).enumerate() {
        let got: Vec<u32> = got.as_chunks().0.iter().map(|&w| u32::from_le_bytes(w)).collect();
        let at = 8 + 16 * thread;
        assert_eq!(got, [word(at), word(at + 4), 77, 0xffff_ff80, word(32)]);
    }
}

#[test]
fn lanes_part_and_meet() {
    // Each lane goes round as often as its number says, some leave early, all paths are taken.
    let body = "mov.u32 %wo, 0; mov.u32 %w1, 0;
        $again: setp.ge.u32 %p0, %w1, %tid; @%p0 bra $done;
        and.b32 %w2, %w1, 1; setp.eq.u32 %p1, %w2, 0; @%p1 bra $even;
        add.s32 %wo, %wo, 100; bra.uni $next;
        $even: add.s32 %wo, %wo, 1;
        $next: add.s32 %w1, %w1, 1; setp.eq.u32 %p2, %w1, 20; @%p2 bra $done; bra $again;
        $done: add.s32 %wo, %wo, 7;";
    let got = run(body, &ramp(45));
    for (thread, got) in got.into_iter().enumerate() {
        let turns = thread.min(20) as u32;
        assert_eq!(got, turns / 2 * 100 + turns.div_ceil(2) + 7, "{thread}");
    }
}
