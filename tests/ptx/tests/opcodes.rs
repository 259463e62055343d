//! Each instruction on values against Rust's arithmetic, over edge values of all operands.
//!
//! An instruction is written with the registers `%h0 … %h3` (16 bits), `%w0 …` (32), `%d0 …` (64)
//! and `%p0 …` (bit 0) of its operands, and gives its result to `%ho`, `%wo`, `%do` or `%po`.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use half::{bf16, f16};
use ptx_interpreter::{Memory, Module, Shape};

type Want = fn([u64; 4]) -> u64;

#[derive(Clone, Copy, PartialEq)]
enum Result {
    Bits,
    F32,
    F64,
}

const INTEGERS: [u64; 28] = [
    0,
    1,
    2,
    3,
    5,
    7,
    8,
    15,
    16,
    31,
    32,
    33,
    63,
    64,
    65,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

fn singles() -> Vec<u64> {
    let values = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        1.5,
        2.5,
        -2.5,
        3.7,
        -3.7,
        255.5,
        -129.0,
        65535.9,
        2_147_483_648.0,
        -2_147_483_904.0,
        4_294_967_296.0,
        1e19,
        -1e30,
        f32::MIN_POSITIVE,
        f32::MIN_POSITIVE / 4.0,
        f32::MAX,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::EPSILON,
        1.0 + f32::EPSILON,
        1.0 - f32::EPSILON / 2.0,
        0.1,
    ];
    values.into_iter().map(|value: f32| u64::from(value.to_bits())).collect()
}

fn doubles() -> Vec<u64> {
    let mut values: Vec<f64> =
        singles().into_iter().map(|bits| f64::from(f32::from_bits(bits as u32))).collect();
    values.extend([1.0 + f64::EPSILON, 9.3e18, -9.3e18, 1e300, 1e-300, 16_777_217.0]);
    values.into_iter().map(f64::to_bits).collect()
}

/// Quadruples of values: each beside each other in the first two places, more by chance.
fn operands(values: &[u64]) -> Vec<[u64; 4]> {
    let mut state = 12345u64;
    let mut any = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        values[(state >> 33) as usize % values.len()]
    };
    let mut all = vec![];
    for &a in values {
        for &b in values {
            all.push([a, b, any(), any()]);
        }
    }
    for _ in 0..512 {
        all.push([any(), any(), any(), any()]);
    }
    all.truncate(all.len() / 32 * 32);
    all
}

fn execute(instruction: &str, all: &[[u64; 4]]) -> Vec<u64> {
    let mut body = String::new();
    for place in 0..4 {
        let at = 8 * place;
        body += &format!(
            "ld.global.b16 %h{place}, [%in+{at}]; ld.global.b32 %w{place}, [%in+{at}];
             ld.global.b64 %d{place}, [%in+{at}]; and.b32 %bit, %w{place}, 1;
             setp.ne.u32 %p{place}, %bit, 0;\n"
        );
    }
    let give = [
        ("%ho", "cvt.u64.u16 %do, %ho;"),
        ("%wo", "cvt.u64.u32 %do, %wo;"),
        ("%po", "selp.b64 %do, 1, 0, %po;"),
    ];
    let give = give.iter().find(|(name, _)| instruction.contains(name)).map_or("", |(_, how)| how);
    let text = format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n
        .visible .entry k(.param .u64 from, .param .u64 to)\n{{
        .reg .b16 %h<4>; .reg .b32 %w<4>; .reg .b64 %d<4>; .reg .pred %p<4>;
        .reg .b16 %ho; .reg .b32 %wo, %bit; .reg .b64 %do, %in, %out; .reg .pred %po;
        .reg .b32 %block, %thread, %size;
        ld.param.u64 %in, [from]; ld.param.u64 %out, [to];
        mov.u32 %block, %ctaid.x; mov.u32 %thread, %tid.x; mov.u32 %size, %ntid.x;
        mad.lo.s32 %thread, %block, %size, %thread;
        mad.wide.u32 %in, %thread, 32, %in; mad.wide.u32 %out, %thread, 8, %out;
        {body} {instruction} {give}
        st.global.u64 [%out], %do; ret;\n}}\n"
    );
    let module = Module::parse(&text).unwrap_or_else(|error| panic!("{instruction} {error}"));
    let mut memory = Memory::default();
    let (from, to) = (memory.alloc(32 * all.len()), memory.alloc(8 * all.len()));
    let bytes: Vec<u8> = all.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    memory.upload(&bytes, from).unwrap();
    let shape = Shape { grid: [all.len() as u32 / 32, 1, 1], block: [32, 1, 1], shared_bytes: 0 };
    let args = [from.to_le_bytes().to_vec(), to.to_le_bytes().to_vec()];
    module.launch(&mut memory, "k", &shape, &args).unwrap_or_else(|e| panic!("{instruction} {e}"));
    let mut out = vec![0; 8 * all.len()];
    memory.download(to, &mut out).unwrap();
    out.as_chunks().0.iter().map(|&word| u64::from_le_bytes(word)).collect()
}

fn check(values: &[u64], result: Result, cases: &[(&str, Want)]) {
    let mut wrong = vec![];
    for (instruction, want) in cases {
        let divides =
            ["div.s", "div.u", "rem.s", "rem.u"].iter().any(|d| instruction.starts_with(d));
        let narrow = instruction.contains("16 ");
        let wide = instruction.contains("64 ");
        let mut all = operands(values);
        all.retain(|v| {
            let divisor = if narrow {
                v[1] & 0xffff
            } else if wide {
                v[1]
            } else {
                v[1] & 0xffff_ffff
            };
            !divides || divisor != 0
        });
        all.truncate(all.len() / 32 * 32);
        let got = execute(instruction, &all);
        for (operands, got) in all.iter().zip(got) {
            let want = want(*operands);
            let same = match result {
                Result::Bits => got == want,
                Result::F32 => {
                    let (x, y) = (f32::from_bits(got as u32), f32::from_bits(want as u32));
                    got == want || (x.is_nan() && y.is_nan())
                }
                Result::F64 => {
                    got == want || (f64::from_bits(got).is_nan() && f64::from_bits(want).is_nan())
                }
            };
            if !same {
                wrong.push(format!("{instruction} of {operands:x?} is {got:x}, not {want:x}"));
                break;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn s(value: u64) -> i64 {
    i64::from(value as i32)
}

fn u(value: u64) -> u64 {
    value & 0xffff_ffff
}

fn h(value: u64) -> u64 {
    value & 0xffff
}

fn sh(value: u64) -> i64 {
    i64::from(value as i16)
}

fn f(value: u64) -> f32 {
    f32::from_bits(value as u32)
}

fn b(value: f32) -> u64 {
    u64::from(value.to_bits())
}

fn g(value: u64) -> f64 {
    f64::from_bits(value)
}

#[test]
fn integers_of_32_bits() {
    check(
        &INTEGERS,
        Result::Bits,
        &[
            ("add.s32 %wo, %w0, %w1;", |v| u(v[0].wrapping_add(v[1]))),
            ("add.u32 %wo, %w0, 7;", |v| u(v[0].wrapping_add(7))),
            ("sub.s32 %wo, %w0, %w1;", |v| u(v[0].wrapping_sub(v[1]))),
            ("mul.lo.s32 %wo, %w0, %w1;", |v| u(v[0].wrapping_mul(v[1]))),
            ("mul.lo.u32 %wo, %w0, -3;", |v| u((s(v[0]).wrapping_mul(-3)) as u64)),
            ("mul.hi.s32 %wo, %w0, %w1;", |v| u(((s(v[0]) * s(v[1])) >> 32) as u64)),
            ("mul.hi.u32 %wo, %w0, %w1;", |v| (u(v[0]) * u(v[1])) >> 32),
            ("mad.lo.s32 %wo, %w0, %w1, %w2;", |v| u(v[0].wrapping_mul(v[1]).wrapping_add(v[2]))),
            ("mad.hi.u32 %wo, %w0, %w1, %w2;", |v| {
                u(((u(v[0]) * u(v[1])) >> 32).wrapping_add(v[2]))
            }),
            ("mad.hi.s32 %wo, %w0, %w1, %w2;", |v| {
                u((((s(v[0]) * s(v[1])) >> 32) as u64).wrapping_add(v[2]))
            }),
            ("div.s32 %wo, %w0, %w1;", |v| u((s(v[0]) / s(v[1])) as u64)),
            ("div.u32 %wo, %w0, %w1;", |v| u(v[0]) / u(v[1])),
            ("rem.s32 %wo, %w0, %w1;", |v| u((s(v[0]) % s(v[1])) as u64)),
            ("rem.u32 %wo, %w0, %w1;", |v| u(v[0]) % u(v[1])),
            ("min.s32 %wo, %w0, %w1;", |v| u(s(v[0]).min(s(v[1])) as u64)),
            ("min.u32 %wo, %w0, %w1;", |v| u(v[0]).min(u(v[1]))),
            ("max.s32 %wo, %w0, %w1;", |v| u(s(v[0]).max(s(v[1])) as u64)),
            ("max.u32 %wo, %w0, %w1;", |v| u(v[0]).max(u(v[1]))),
            ("neg.s32 %wo, %w0;", |v| u((-s(v[0])) as u64)),
            ("abs.s32 %wo, %w0;", |v| u(s(v[0]).unsigned_abs())),
            ("mul.wide.s32 %do, %w0, %w1;", |v| (s(v[0]) * s(v[1])) as u64),
            ("mul.wide.u32 %do, %w0, %w1;", |v| u(v[0]) * u(v[1])),
            ("mad.wide.s32 %do, %w0, %w1, %d2;", |v| {
                ((s(v[0]) * s(v[1])) as u64).wrapping_add(v[2])
            }),
            ("mad.wide.u32 %do, %w0, %w1, %d2;", |v| (u(v[0]) * u(v[1])).wrapping_add(v[2])),
            ("dp4a.s32.s32 %wo, %w0, %w1, %w2;", |v| {
                let byte = |x: u64, i: u32| i64::from((x >> (8 * i)) as i8);
                let sum: i64 = (0..4).map(|i| byte(v[0], i) * byte(v[1], i)).sum();
                u((sum as u64).wrapping_add(v[2]))
            }),
        ],
    );
}

#[test]
fn bits_of_32() {
    check(
        &INTEGERS,
        Result::Bits,
        &[
            ("and.b32 %wo, %w0, %w1;", |v| u(v[0] & v[1])),
            ("or.b32 %wo, %w0, %w1;", |v| u(v[0] | v[1])),
            ("xor.b32 %wo, %w0, %w1;", |v| u(v[0] ^ v[1])),
            ("not.b32 %wo, %w0;", |v| u(!v[0])),
            ("shl.b32 %wo, %w0, %w1;", |v| if u(v[1]) > 31 { 0 } else { u(v[0] << u(v[1])) }),
            ("shr.u32 %wo, %w0, %w1;", |v| if u(v[1]) > 31 { 0 } else { u(v[0]) >> u(v[1]) }),
            ("shr.b32 %wo, %w0, %w1;", |v| if u(v[1]) > 31 { 0 } else { u(v[0]) >> u(v[1]) }),
            ("shr.s32 %wo, %w0, %w1;", |v| u((s(v[0]) >> u(v[1]).min(63)) as u64)),
            ("shf.l.wrap.b32 %wo, %w0, %w1, %w2;", |v| {
                (((u(v[1]) << 32 | u(v[0])) << (v[2] & 31)) >> 32) & 0xffff_ffff
            }),
            ("shf.r.wrap.b32 %wo, %w0, %w1, %w2;", |v| u((u(v[1]) << 32 | u(v[0])) >> (v[2] & 31))),
            ("shf.l.clamp.b32 %wo, %w0, %w1, %w2;", |v| {
                u((u128::from(u(v[1]) << 32 | u(v[0])) << u(v[2]).min(32) >> 32) as u64)
            }),
            ("shf.r.clamp.b32 %wo, %w0, %w1, %w2;", |v| {
                u((u(v[1]) << 32 | u(v[0])) >> u(v[2]).min(32))
            }),
            // Table 0x96 is a ^ b ^ c, 0xe8 the majority.
            ("lop3.b32 %wo, %w0, %w1, %w2, 0x96;", |v| u(v[0] ^ v[1] ^ v[2])),
            ("lop3.b32 %wo, %w0, %w1, %w2, 0xe8;", |v| u(v[0] & v[1] | v[0] & v[2] | v[1] & v[2])),
            ("lop3.b32 %wo, %w0, %w1, %w2, 0x70;", |v| u(v[0] & !(v[1] & v[2]))),
            ("popc.b32 %wo, %w0;", |v| u64::from((v[0] as u32).count_ones())),
            ("clz.b32 %wo, %w0;", |v| u64::from((v[0] as u32).leading_zeros())),
            ("brev.b32 %wo, %w0;", |v| u64::from((v[0] as u32).reverse_bits())),
            ("prmt.b32 %wo, %w0, %w1, 0x5410;", |v| h(v[0]) | h(v[1]) << 16),
            ("prmt.b32 %wo, %w0, %w1, 0x3276;", |v| u(v[1]) >> 16 & 0xffff | u(v[0]) & 0xffff_0000),
            ("prmt.b32 %wo, %w0, 0, 0x4449;", |v| if v[0] >> 15 & 1 == 1 { 0xff } else { 0 }),
            ("bfe.u32 %wo, %w0, %w1, %w2;", |v| {
                let (from, count) = (v[1] & 255, v[2] & 255);
                if from > 31 { 0 } else { u(v[0]) >> from & ((1u128 << count.min(64)) - 1) as u64 }
            }),
            ("bfe.s32 %wo, %w0, 8, 8;", |v| u(i64::from((v[0] >> 8) as i8) as u64)),
            ("bfe.s32 %wo, %w0, 28, 8;", |v| u((s(v[0]) >> 28) as u64)),
            ("bfe.s32 %wo, %w0, 4, 0;", |_| 0),
            ("bfi.b32 %wo, %w0, %w1, %w2, %w3;", |v| {
                let (from, count) = (v[2] & 255, v[3] & 255);
                let mask = if from > 31 { 0 } else { ((1u128 << count.min(64)) - 1) << from };
                u((u128::from(v[1]) & !mask | u128::from(v[0]) << from.min(32) & mask) as u64)
            }),
        ],
    );
}

#[test]
fn integers_of_64_bits() {
    check(
        &INTEGERS,
        Result::Bits,
        &[
            ("add.s64 %do, %d0, %d1;", |v| v[0].wrapping_add(v[1])),
            ("sub.s64 %do, %d0, %d1;", |v| v[0].wrapping_sub(v[1])),
            ("mul.lo.s64 %do, %d0, %d1;", |v| v[0].wrapping_mul(v[1])),
            ("mul.hi.u64 %do, %d0, %d1;", |v| ((u128::from(v[0]) * u128::from(v[1])) >> 64) as u64),
            ("mul.hi.s64 %do, %d0, %d1;", |v| {
                ((i128::from(v[0] as i64) * i128::from(v[1] as i64)) >> 64) as u64
            }),
            ("mad.lo.s64 %do, %d0, %d1, %d2;", |v| v[0].wrapping_mul(v[1]).wrapping_add(v[2])),
            ("div.s64 %do, %d0, %d1;", |v| (v[0] as i64).wrapping_div(v[1] as i64) as u64),
            ("div.u64 %do, %d0, %d1;", |v| v[0] / v[1]),
            ("rem.s64 %do, %d0, %d1;", |v| (v[0] as i64).wrapping_rem(v[1] as i64) as u64),
            ("rem.u64 %do, %d0, %d1;", |v| v[0] % v[1]),
            ("min.s64 %do, %d0, %d1;", |v| (v[0] as i64).min(v[1] as i64) as u64),
            ("min.u64 %do, %d0, %d1;", |v| v[0].min(v[1])),
            ("max.s64 %do, %d0, %d1;", |v| (v[0] as i64).max(v[1] as i64) as u64),
            ("max.u64 %do, %d0, %d1;", |v| v[0].max(v[1])),
            ("neg.s64 %do, %d0;", |v| 0u64.wrapping_sub(v[0])),
            ("abs.s64 %do, %d0;", |v| (v[0] as i64).unsigned_abs()),
            ("and.b64 %do, %d0, %d1;", |v| v[0] & v[1]),
            ("or.b64 %do, %d0, %d1;", |v| v[0] | v[1]),
            ("xor.b64 %do, %d0, %d1;", |v| v[0] ^ v[1]),
            ("not.b64 %do, %d0;", |v| !v[0]),
            ("shl.b64 %do, %d0, %w1;", |v| if u(v[1]) > 63 { 0 } else { v[0] << u(v[1]) }),
            ("shr.u64 %do, %d0, %w1;", |v| if u(v[1]) > 63 { 0 } else { v[0] >> u(v[1]) }),
            ("shr.s64 %do, %d0, %w1;", |v| ((v[0] as i64) >> u(v[1]).min(63)) as u64),
            ("bfe.u64 %do, %d0, %w1, %w2;", |v| {
                let (from, count) = (v[1] & 255, v[2] & 255);
                if from > 63 { 0 } else { v[0] >> from & ((1u128 << count.min(64)) - 1) as u64 }
            }),
            ("bfe.s64 %do, %d0, 40, 16;", |v| ((v[0] >> 40) as i16) as i64 as u64),
            ("bfi.b64 %do, %d0, %d1, 32, 32;", |v| v[0] << 32 | u(v[1])),
            ("bfi.b64 %do, %d0, %d1, %w2, %w3;", |v| {
                let (from, count) = (v[2] & 255, v[3] & 255);
                let mask = if from > 63 { 0 } else { ((1u128 << count.min(64)) - 1) << from };
                (u128::from(v[1]) & !mask | u128::from(v[0]) << from.min(64) & mask) as u64
            }),
            ("popc.b64 %wo, %d0;", |v| u64::from(v[0].count_ones())),
            ("clz.b64 %wo, %d0;", |v| u64::from(v[0].leading_zeros())),
            ("brev.b64 %do, %d0;", |v| v[0].reverse_bits()),
        ],
    );
}

#[test]
fn integers_of_16_bits() {
    check(
        &INTEGERS,
        Result::Bits,
        &[
            ("add.s16 %ho, %h0, %h1;", |v| h(v[0].wrapping_add(v[1]))),
            ("sub.s16 %ho, %h0, %h1;", |v| h(v[0].wrapping_sub(v[1]))),
            ("mul.lo.s16 %ho, %h0, %h1;", |v| h(v[0].wrapping_mul(v[1]))),
            ("mul.hi.s16 %ho, %h0, %h1;", |v| h(((sh(v[0]) * sh(v[1])) >> 16) as u64)),
            ("mul.hi.u16 %ho, %h0, %h1;", |v| (h(v[0]) * h(v[1])) >> 16),
            ("mul.wide.s16 %wo, %h0, %h1;", |v| u((sh(v[0]) * sh(v[1])) as u64)),
            ("mul.wide.u16 %wo, %h0, %h1;", |v| h(v[0]) * h(v[1])),
            ("mad.lo.u16 %ho, %h0, %h1, %h2;", |v| h(v[0].wrapping_mul(v[1]).wrapping_add(v[2]))),
            ("mad.wide.u16 %wo, %h0, %h1, %w2;", |v| u(h(v[0]) * h(v[1]) + u(v[2]))),
            ("mad.wide.s16 %wo, %h0, %h1, %w2;", |v| {
                u(((sh(v[0]) * sh(v[1])) as u64).wrapping_add(v[2]))
            }),
            ("div.s16 %ho, %h0, %h1;", |v| h((sh(v[0]) / sh(v[1])) as u64)),
            ("div.u16 %ho, %h0, %h1;", |v| h(v[0]) / h(v[1])),
            ("rem.s16 %ho, %h0, %h1;", |v| h((sh(v[0]) % sh(v[1])) as u64)),
            ("rem.u16 %ho, %h0, %h1;", |v| h(v[0]) % h(v[1])),
            ("min.s16 %ho, %h0, %h1;", |v| h(sh(v[0]).min(sh(v[1])) as u64)),
            ("max.u16 %ho, %h0, %h1;", |v| h(v[0]).max(h(v[1]))),
            ("min.u16 %ho, %h0, %h1;", |v| h(v[0]).min(h(v[1]))),
            ("max.s16 %ho, %h0, %h1;", |v| h(sh(v[0]).max(sh(v[1])) as u64)),
            ("neg.s16 %ho, %h0;", |v| h(0u64.wrapping_sub(v[0]))),
            ("abs.s16 %ho, %h0;", |v| h(sh(v[0]).unsigned_abs())),
            ("and.b16 %ho, %h0, %h1;", |v| h(v[0] & v[1])),
            ("or.b16 %ho, %h0, %h1;", |v| h(v[0] | v[1])),
            ("xor.b16 %ho, %h0, %h1;", |v| h(v[0] ^ v[1])),
            ("not.b16 %ho, %h0;", |v| h(!v[0])),
            ("shl.b16 %ho, %h0, %w1;", |v| if u(v[1]) > 15 { 0 } else { h(v[0] << u(v[1])) }),
            ("shr.u16 %ho, %h0, %w1;", |v| if u(v[1]) > 15 { 0 } else { h(v[0]) >> u(v[1]) }),
            ("shr.s16 %ho, %h0, %w1;", |v| h((sh(v[0]) >> u(v[1]).min(15)) as u64)),
            ("setp.lt.s16 %po, %h0, %h1;", |v| u64::from(sh(v[0]) < sh(v[1]))),
            ("setp.ne.b16 %po, %h0, %h1;", |v| u64::from(h(v[0]) != h(v[1]))),
            ("setp.hi.u16 %po, %h0, %h1;", |v| u64::from(h(v[0]) > h(v[1]))),
        ],
    );
}

#[test]
fn comparisons_of_integers_and_predicates() {
    check(
        &INTEGERS,
        Result::Bits,
        &[
            ("setp.eq.s32 %po, %w0, %w1;", |v| u64::from(u(v[0]) == u(v[1]))),
            ("setp.ne.b32 %po, %w0, %w1;", |v| u64::from(u(v[0]) != u(v[1]))),
            ("setp.lt.s32 %po, %w0, %w1;", |v| u64::from(s(v[0]) < s(v[1]))),
            ("setp.le.s32 %po, %w0, %w1;", |v| u64::from(s(v[0]) <= s(v[1]))),
            ("setp.gt.s32 %po, %w0, -1;", |v| u64::from(s(v[0]) > -1)),
            ("setp.ge.s32 %po, %w0, %w1;", |v| u64::from(s(v[0]) >= s(v[1]))),
            ("setp.lt.u32 %po, %w0, %w1;", |v| u64::from(u(v[0]) < u(v[1]))),
            ("setp.gt.u32 %po, %w0, %w1;", |v| u64::from(u(v[0]) > u(v[1]))),
            ("setp.lo.u32 %po, %w0, %w1;", |v| u64::from(u(v[0]) < u(v[1]))),
            ("setp.hs.u32 %po, %w0, %w1;", |v| u64::from(u(v[0]) >= u(v[1]))),
            ("setp.lt.s64 %po, %d0, %d1;", |v| u64::from((v[0] as i64) < v[1] as i64)),
            ("setp.gt.u64 %po, %d0, %d1;", |v| u64::from(v[0] > v[1])),
            ("setp.ne.s64 %po, %d0, 0;", |v| u64::from(v[0] != 0)),
            ("setp.lt.and.s32 %po, %w0, %w1, %p2;", |v| u64::from(s(v[0]) < s(v[1])) & v[2]),
            ("setp.lt.or.s32 %po, %w0, %w1, !%p2;", |v| {
                u64::from(s(v[0]) < s(v[1]) || v[2] & 1 == 0)
            }),
            ("setp.lt.xor.s32 %po, %w0, %w1, %p2;", |v| (u64::from(s(v[0]) < s(v[1])) ^ v[2]) & 1),
            ("setp.lt.s32 %p0|%po, %w0, %w1;", |v| u64::from(s(v[0]) >= s(v[1]))),
            // The second is that of the comparison turned round, with the same other predicate.
            ("setp.lt.and.s32 %p2|%po, %w0, %w1, %p2;", |v| u64::from(s(v[0]) >= s(v[1])) & v[2]),
            ("mov.pred %po, %p0; setp.lt.and.s32 %po, %w1, %w2, %po;", |v| {
                u64::from(s(v[1]) < s(v[2])) & v[0]
            }),
            ("and.pred %po, %p0, %p1;", |v| v[0] & v[1] & 1),
            ("or.pred %po, %p0, %p1;", |v| (v[0] | v[1]) & 1),
            ("xor.pred %po, %p0, %p1;", |v| (v[0] ^ v[1]) & 1),
            ("not.pred %po, %p0;", |v| !v[0] & 1),
            ("mov.pred %po, -1;", |_| 1),
            ("mov.pred %po, 0;", |_| 0),
            ("selp.b32 %wo, %w0, %w1, %p2;", |v| u(if v[2] & 1 == 1 { v[0] } else { v[1] })),
            ("selp.b32 %wo, %w0, %w1, !%p2;", |v| u(if v[2] & 1 == 0 { v[0] } else { v[1] })),
            ("selp.b64 %do, %d0, 9, %p2;", |v| if v[2] & 1 == 1 { v[0] } else { 9 }),
            ("selp.u16 %ho, 1, 0, %p2;", |v| v[2] & 1),
            ("mov.u32 %wo, 5; @%p0 mov.u32 %wo, %w1;", |v| if v[0] & 1 == 1 { u(v[1]) } else { 5 }),
            ("mov.u32 %wo, 5; @!%p0 add.s32 %wo, %w1, 1;", |v| {
                if v[0] & 1 == 0 { u(v[1].wrapping_add(1)) } else { 5 }
            }),
        ],
    );
}

#[test]
fn moves_that_pack_and_unpack() {
    check(
        &INTEGERS,
        Result::Bits,
        &[
            ("mov.b32 %wo, {%h0, %h1};", |v| h(v[0]) | h(v[1]) << 16),
            ("mov.b64 %do, {%w0, %w1};", |v| u(v[0]) | u(v[1]) << 32),
            ("mov.b64 %do, {%h0, %h1, %h2, %h3};", |v| {
                h(v[0]) | h(v[1]) << 16 | h(v[2]) << 32 | h(v[3]) << 48
            }),
            ("mov.b32 {%ho, %h1}, %w0;", |v| h(v[0])),
            ("mov.b32 {_, %ho}, %w0;", |v| u(v[0]) >> 16),
            ("mov.b64 {%w1, %wo}, %d0;", |v| v[0] >> 32),
            ("mov.b64 {%wo, %w1}, %d0;", |v| u(v[0])),
            ("mov.u32 %wo, %laneid; sub.s32 %wo, %wo, %laneid;", |_| 0),
            ("{ .reg .b16 %t; mov.b16 %t, %h0; mov.b32 %wo, {%t, %t}; }", |v| {
                h(v[0]) | h(v[0]) << 16
            }),
            ("mov.b32 %wo, 0f3F800000;", |_| 0x3f80_0000),
            ("mov.f64 %do, 0d3FF0000000000000;", |_| 0x3ff0_0000_0000_0000),
            ("mov.u64 %do, -2;", |_| u64::MAX - 1),
            ("mov.u32 %wo, 0x1F;", |_| 31),
        ],
    );
}

#[test]
fn floats_of_32_bits() {
    check(
        &singles(),
        Result::F32,
        &[
            ("add.f32 %wo, %w0, %w1;", |v| b(f(v[0]) + f(v[1]))),
            ("add.rn.f32 %wo, %w0, 0f3F800000;", |v| b(f(v[0]) + 1.0)),
            ("sub.f32 %wo, %w0, %w1;", |v| b(f(v[0]) - f(v[1]))),
            ("mul.f32 %wo, %w0, %w1;", |v| b(f(v[0]) * f(v[1]))),
            ("fma.rn.f32 %wo, %w0, %w1, %w2;", |v| b(f(v[0]).mul_add(f(v[1]), f(v[2])))),
            ("div.rn.f32 %wo, %w0, %w1;", |v| b(f(v[0]) / f(v[1]))),
            ("rcp.rn.f32 %wo, %w0;", |v| b(1.0 / f(v[0]))),
            ("sqrt.rn.f32 %wo, %w0;", |v| b(f(v[0]).sqrt())),
            ("neg.f32 %wo, %w0;", |v| b(-f(v[0]))),
            ("abs.f32 %wo, %w0;", |v| b(f(v[0]).abs())),
            ("copysign.f32 %wo, %w0, %w1;", |v| b(f(v[1]).copysign(f(v[0])))),
            // Of two zeros the negative one is the smaller; a number goes before NaN.
            ("min.f32 %wo, %w0, %w1;", |v| {
                let (x, y) = (f(v[0]), f(v[1]));
                b(if x == 0.0 && y == 0.0 { f((v[0] | v[1]) & 0x8000_0000) } else { x.min(y) })
            }),
            ("max.f32 %wo, %w0, %w1;", |v| {
                let (x, y) = (f(v[0]), f(v[1]));
                b(if x == 0.0 && y == 0.0 { f(v[0] & v[1]) } else { x.max(y) })
            }),
            ("min.NaN.f32 %wo, %w0, %w1;", |v| {
                let (x, y) = (f(v[0]), f(v[1]));
                b(if x.is_nan() || y.is_nan() {
                    f32::NAN
                } else if x == 0.0 && y == 0.0 {
                    f((v[0] | v[1]) & 0x8000_0000)
                } else {
                    x.min(y)
                })
            }),
            ("max.NaN.f32 %wo, %w0, %w1;", |v| {
                let (x, y) = (f(v[0]), f(v[1]));
                b(if x.is_nan() || y.is_nan() {
                    f32::NAN
                } else if x == 0.0 && y == 0.0 {
                    f(v[0] & v[1])
                } else {
                    x.max(y)
                })
            }),
            ("ex2.approx.f32 %wo, %w0;", |v| b(f64::from(f(v[0])).exp2() as f32)),
            ("lg2.approx.f32 %wo, %w0;", |v| b(f64::from(f(v[0])).log2() as f32)),
            ("rsqrt.approx.f32 %wo, %w0;", |v| b((1.0 / f64::from(f(v[0])).sqrt()) as f32)),
        ],
    );
    // Small numbers go and come as zeros of their sign.
    check(
        &singles(),
        Result::F32,
        &[
            ("ex2.approx.ftz.f32 %wo, %w0;", |v| {
                let result = f64::from(f(v[0])).exp2() as f32;
                b(if result.is_subnormal() { 0.0 } else { result })
            }),
            ("rcp.approx.ftz.f32 %wo, %w0;", |v| {
                let x = if f(v[0]).is_subnormal() { 0f32.copysign(f(v[0])) } else { f(v[0]) };
                let result = 1.0 / x;
                b(if result.is_subnormal() { 0f32.copysign(result) } else { result })
            }),
            ("lg2.approx.ftz.f32 %wo, %w0;", |v| {
                let x = if f(v[0]).is_subnormal() { 0f32.copysign(f(v[0])) } else { f(v[0]) };
                let result = f64::from(x).log2() as f32;
                b(if result.is_subnormal() { 0f32.copysign(result) } else { result })
            }),
            ("rsqrt.approx.ftz.f32 %wo, %w0;", |v| {
                let x = if f(v[0]).is_subnormal() { 0f32.copysign(f(v[0])) } else { f(v[0]) };
                b((1.0 / f64::from(x).sqrt()) as f32)
            }),
        ],
    );
}

/// Directed roundings by what they are between: exact values by numbers that f64 holds.
#[test]
fn directed_roundings() {
    let exact = |v: [u64; 4]| f64::from(f(v[0])) * f64::from(f(v[1])) + f64::from(f(v[2]));
    // Few digits each, so that f64 holds products and sums exactly.
    let values: Vec<u64> = [0.0, 1.0, -1.0, 3.0, 0.1f32, -0.3, 1e-3, 1.0 + f32::EPSILON, 77.7]
        .into_iter()
        .map(|value| u64::from(value.to_bits()))
        .collect();
    let all = operands(&values);
    let run = |how| execute(&format!("fma.{how}.f32 %wo, %w0, %w1, %w2;"), &all);
    let (down, up, zero) = (run("rm"), run("rp"), run("rz"));
    for (index, &v) in all.iter().enumerate() {
        let exact = exact(v);
        let nearest = exact as f32;
        let low = if f64::from(nearest) > exact { nearest.next_down() } else { nearest };
        let high = if f64::from(nearest) < exact { nearest.next_up() } else { nearest };
        let inner = if exact > 0.0 { low } else { high };
        let got = [down[index], up[index], zero[index]].map(f);
        assert_eq!(got, [low, high, inner], "{v:x?}");
    }
}

#[test]
fn comparisons_of_floats() {
    check(
        &singles(),
        Result::Bits,
        &[
            ("setp.eq.f32 %po, %w0, %w1;", |v| u64::from(f(v[0]) == f(v[1]))),
            ("setp.ne.f32 %po, %w0, %w1;", |v| {
                u64::from(f(v[0]) != f(v[1]) && !f(v[0]).is_nan() && !f(v[1]).is_nan())
            }),
            ("setp.lt.f32 %po, %w0, %w1;", |v| u64::from(f(v[0]) < f(v[1]))),
            ("setp.le.f32 %po, %w0, %w1;", |v| u64::from(f(v[0]) <= f(v[1]))),
            ("setp.gt.f32 %po, %w0, %w1;", |v| u64::from(f(v[0]) > f(v[1]))),
            ("setp.ge.f32 %po, %w0, %w1;", |v| u64::from(f(v[0]) >= f(v[1]))),
            ("setp.equ.f32 %po, %w0, %w1;", |v| {
                u64::from(f(v[0]) == f(v[1]) || f(v[0]).is_nan() || f(v[1]).is_nan())
            }),
            ("setp.neu.f32 %po, %w0, %w1;", |v| u64::from(f(v[0]) != f(v[1]))),
            ("setp.ltu.f32 %po, %w0, %w1;", |v| {
                u64::from(f(v[0]) < f(v[1]) || f(v[0]).is_nan() || f(v[1]).is_nan())
            }),
            ("setp.leu.f32 %po, %w0, %w1;", |v| {
                u64::from(f(v[0]) <= f(v[1]) || f(v[0]).is_nan() || f(v[1]).is_nan())
            }),
            ("setp.gtu.f32 %po, %w0, %w1;", |v| {
                u64::from(f(v[0]) > f(v[1]) || f(v[0]).is_nan() || f(v[1]).is_nan())
            }),
            ("setp.geu.f32 %po, %w0, %w1;", |v| {
                u64::from(f(v[0]) >= f(v[1]) || f(v[0]).is_nan() || f(v[1]).is_nan())
            }),
            ("setp.num.f32 %po, %w0, %w1;", |v| u64::from(!f(v[0]).is_nan() && !f(v[1]).is_nan())),
            ("setp.nan.f32 %po, %w0, %w1;", |v| u64::from(f(v[0]).is_nan() || f(v[1]).is_nan())),
        ],
    );
    check(
        &doubles(),
        Result::Bits,
        &[
            ("setp.lt.f64 %po, %d0, %d1;", |v| u64::from(g(v[0]) < g(v[1]))),
            ("setp.eq.f64 %po, %d0, %d1;", |v| u64::from(g(v[0]) == g(v[1]))),
            ("setp.gtu.f64 %po, %d0, %d1;", |v| {
                u64::from(g(v[0]) > g(v[1]) || g(v[0]).is_nan() || g(v[1]).is_nan())
            }),
            ("setp.nan.f64 %po, %d0, %d0;", |v| u64::from(g(v[0]).is_nan())),
            ("setp.num.f64 %po, %d0, %d0;", |v| u64::from(!g(v[0]).is_nan())),
        ],
    );
}

#[test]
fn floats_of_64_bits() {
    check(
        &doubles(),
        Result::F64,
        &[
            ("add.f64 %do, %d0, %d1;", |v| (g(v[0]) + g(v[1])).to_bits()),
            ("add.rn.f64 %do, %d0, %d1;", |v| (g(v[0]) + g(v[1])).to_bits()),
            ("sub.f64 %do, %d0, %d1;", |v| (g(v[0]) - g(v[1])).to_bits()),
            ("mul.f64 %do, %d0, %d1;", |v| (g(v[0]) * g(v[1])).to_bits()),
            ("fma.rn.f64 %do, %d0, %d1, %d2;", |v| g(v[0]).mul_add(g(v[1]), g(v[2])).to_bits()),
            ("div.rn.f64 %do, %d0, %d1;", |v| (g(v[0]) / g(v[1])).to_bits()),
            ("rcp.rn.f64 %do, %d0;", |v| (1.0 / g(v[0])).to_bits()),
            ("sqrt.rn.f64 %do, %d0;", |v| g(v[0]).sqrt().to_bits()),
            ("neg.f64 %do, %d0;", |v| (-g(v[0])).to_bits()),
            ("abs.f64 %do, %d0;", |v| g(v[0]).abs().to_bits()),
            ("min.f64 %do, %d0, %d1;", |v| {
                let (x, y) = (g(v[0]), g(v[1]));
                let zero = g((v[0] | v[1]) & 1 << 63);
                (if x == 0.0 && y == 0.0 { zero } else { x.min(y) }).to_bits()
            }),
            ("max.f64 %do, %d0, %d1;", |v| {
                let (x, y) = (g(v[0]), g(v[1]));
                (if x == 0.0 && y == 0.0 { g(v[0] & v[1]) } else { x.max(y) }).to_bits()
            }),
        ],
    );
}

#[test]
fn conversions_of_integers() {
    check(
        &INTEGERS,
        Result::Bits,
        &[
            ("cvt.s64.s32 %do, %w0;", |v| s(v[0]) as u64),
            ("cvt.u64.u32 %do, %w0;", |v| u(v[0])),
            ("cvt.u32.u64 %wo, %d0;", |v| u(v[0])),
            ("cvt.u16.u32 %ho, %w0;", |v| h(v[0])),
            ("cvt.u16.u64 %ho, %d0;", |v| h(v[0])),
            ("cvt.u32.u16 %wo, %h0;", |v| h(v[0])),
            ("cvt.s32.s16 %wo, %h0;", |v| u(sh(v[0]) as u64)),
            ("cvt.s64.s16 %do, %h0;", |v| sh(v[0]) as u64),
            ("cvt.s32.s8 %wo, %w0;", |v| u(i64::from(v[0] as i8) as u64)),
            ("cvt.u32.u8 %wo, %h0;", |v| v[0] & 255),
            ("cvt.s16.s8 %ho, %h0;", |v| h(i64::from(v[0] as i8) as u64)),
            // A narrow result fills its register with zeros or with its sign.
            ("cvt.u8.u32 %wo, %w0;", |v| v[0] & 255),
            ("cvt.s8.s32 %wo, %w0;", |v| u(i64::from(v[0] as i8) as u64)),
            ("cvt.sat.u8.s32 %wo, %w0;", |v| s(v[0]).clamp(0, 255) as u64),
            ("cvt.sat.s8.s32 %wo, %w0;", |v| u(s(v[0]).clamp(-128, 127) as u64)),
            ("cvt.sat.s32.s64 %wo, %d0;", |v| {
                u((v[0] as i64).clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as u64)
            }),
            ("cvt.rn.f32.s32 %wo, %w0;", |v| b(s(v[0]) as f32)),
            ("cvt.rn.f32.u32 %wo, %w0;", |v| b(u(v[0]) as f32)),
            ("cvt.rn.f32.s64 %wo, %d0;", |v| b(v[0] as i64 as f32)),
            ("cvt.rn.f32.u64 %wo, %d0;", |v| b(v[0] as f32)),
            ("cvt.rn.f32.u16 %wo, %h0;", |v| b(h(v[0]) as f32)),
            ("cvt.rn.f32.u8 %wo, %h0;", |v| b((v[0] & 255) as f32)),
            ("cvt.rn.f64.s32 %do, %w0;", |v| (s(v[0]) as f64).to_bits()),
            ("cvt.rn.f64.u64 %do, %d0;", |v| (v[0] as f64).to_bits()),
            ("cvt.rz.f32.u32 %wo, %w0;", |v| {
                let near = u(v[0]) as f32;
                b(if near as u64 > u(v[0]) { near.next_down() } else { near })
            }),
        ],
    );
}

#[test]
fn conversions_of_floats() {
    // Rust's `as` clamps and makes NaN 0, as PTX does for 32 bits.
    check(
        &singles(),
        Result::Bits,
        &[
            ("cvt.rzi.s32.f32 %wo, %w0;", |v| u(f(v[0]) as i32 as u64)),
            ("cvt.rzi.u32.f32 %wo, %w0;", |v| u(u64::from(f(v[0]) as u32))),
            ("cvt.rni.s32.f32 %wo, %w0;", |v| u(f(v[0]).round_ties_even() as i32 as u64)),
            ("cvt.rmi.s32.f32 %wo, %w0;", |v| u(f(v[0]).floor() as i32 as u64)),
            ("cvt.rpi.s32.f32 %wo, %w0;", |v| u(f(v[0]).ceil() as i32 as u64)),
            ("cvt.rzi.u8.f32 %wo, %w0;", |v| u64::from(f(v[0]) as u8)),
            ("cvt.rni.u16.f32 %ho, %w0;", |v| u64::from(f(v[0]).round_ties_even() as u16)),
            // To 64 bits NaN is the top bit alone.
            ("cvt.rzi.s64.f32 %do, %w0;", |v| {
                if f(v[0]).is_nan() { 1 << 63 } else { f(v[0]) as i64 as u64 }
            }),
            (
                "cvt.rzi.u64.f32 %do, %w0;",
                |v| {
                    if f(v[0]).is_nan() { 1 << 63 } else { f(v[0]) as u64 }
                },
            ),
            ("cvt.rn.bf16.f32 %ho, %w0;", |v| u64::from(bf16::from_f32(f(v[0])).to_bits())),
            ("cvt.rn.f16.f32 %ho, %w0;", |v| u64::from(f16::from_f32(f(v[0])).to_bits())),
            ("cvt.rn.bf16x2.f32 %wo, %w0, %w1;", |v| {
                let bits = |value| u64::from(bf16::from_f32(f(value)).to_bits());
                bits(v[0]) << 16 | bits(v[1])
            }),
            ("cvt.rn.f16x2.f32 %wo, %w0, %w1;", |v| {
                let bits = |value| u64::from(f16::from_f32(f(value)).to_bits());
                bits(v[0]) << 16 | bits(v[1])
            }),
        ],
    );
    check(
        &singles(),
        Result::F32,
        &[
            ("cvt.rni.f32.f32 %wo, %w0;", |v| b(f(v[0]).round_ties_even())),
            ("cvt.rzi.f32.f32 %wo, %w0;", |v| b(f(v[0]).trunc())),
            ("cvt.rmi.f32.f32 %wo, %w0;", |v| b(f(v[0]).floor())),
            ("cvt.rpi.f32.f32 %wo, %w0;", |v| b(f(v[0]).ceil())),
            ("cvt.sat.f32.f32 %wo, %w0;", |v| {
                let x = f(v[0]);
                b(if x > 1.0 {
                    1.0
                } else if x > 0.0 {
                    x
                } else {
                    0.0
                })
            }),
        ],
    );
    check(&singles(), Result::F64, &[("cvt.f64.f32 %do, %w0;", |v| f64::from(f(v[0])).to_bits())]);
    check(
        &doubles(),
        Result::F32,
        &[
            ("cvt.rn.f32.f64 %wo, %d0;", |v| b(g(v[0]) as f32)),
            ("cvt.rz.f32.f64 %wo, %d0;", |v| {
                let near = g(v[0]) as f32;
                let outside = f64::from(near).abs() > g(v[0]).abs();
                b(match outside {
                    true if near > 0.0 => near.next_down(),
                    true => near.next_up(),
                    false => near,
                })
            }),
        ],
    );
    check(
        &doubles(),
        Result::Bits,
        &[
            ("cvt.rzi.s32.f64 %wo, %d0;", |v| {
                if g(v[0]).is_nan() { 1 << 31 } else { u(g(v[0]) as i32 as u64) }
            }),
            ("cvt.rni.s64.f64 %do, %d0;", |v| {
                if g(v[0]).is_nan() { 1 << 63 } else { g(v[0]).round_ties_even() as i64 as u64 }
            }),
        ],
    );
}

/// Half floats: all operands among those that f64 adds and multiplies exactly.
#[test]
fn half_floats() {
    let values = [0.0, -0.0, 1.0, -1.5, 0.1, 3.25, -100.0, 1e-3, f32::INFINITY, f32::NAN];
    let pairs = |bits: fn(f32) -> u16| -> Vec<u64> {
        let pair = |i: usize| u32::from(bits(values[i])) | u32::from(bits(values[9 - i])) << 16;
        (0..10).map(|i| u64::from(pair(i))).collect()
    };
    fn fused<T: Fn(u64) -> f64>(value: T, v: [u64; 4]) -> f64 {
        value(v[0]).mul_add(value(v[1]), value(v[2]))
    }
    let b16 = |bits: u64| bf16::from_bits(bits as u16).to_f64();
    let f16s = |bits: u64| f16::from_bits(bits as u16).to_f64();
    let same = |got: u64, want: f64, decode: fn(u64) -> f64, encode: fn(f64) -> u64| {
        decode(got).is_nan() && want.is_nan() || got == encode(want)
    };
    let to_b = |value: f64| u64::from(bf16::from_f64(value).to_bits());
    let to_f = |value: f64| u64::from(f16::from_f64(value).to_bits());
    let all = operands(&pairs(|x| bf16::from_f32(x).to_bits()));
    let one = execute("fma.rn.bf16 %ho, %h0, %h1, %h2;", &all);
    let two = execute("fma.rn.bf16x2 %wo, %w0, %w1, %w2;", &all);
    for (v, (one, two)) in all.iter().zip(one.into_iter().zip(two)) {
        assert!(same(one, fused(b16, *v), b16, to_b), "{v:x?}");
        assert!(same(h(two), fused(b16, *v), b16, to_b), "{v:x?}");
        assert!(same(two >> 16, fused(b16, v.map(|x| x >> 16)), b16, to_b), "{v:x?}");
    }
    let all = operands(&pairs(|x| f16::from_f32(x).to_bits()));
    for (instruction, want) in [
        ("fma.rn.f16 %ho, %h0, %h1, %h2;", (|x, y, z| x * y + z) as fn(f64, f64, f64) -> f64),
        ("add.f16 %ho, %h0, %h1;", |x, y, _| x + y),
        ("mul.f16 %ho, %h0, %h1;", |x, y, _| x * y),
    ] {
        let paired = instruction.replace("f16", "f16x2").replace("%h", "%w");
        let both = execute(instruction, &all).into_iter().zip(execute(&paired, &all));
        for (v, (one, two)) in all.iter().zip(both) {
            let [x, y, z, _] = v.map(f16s);
            assert!(same(one, want(x, y, z), f16s, to_f), "{instruction} {v:x?} {one:x}");
            assert!(same(h(two), want(x, y, z), f16s, to_f), "{paired} {v:x?} {two:x}");
            let [x, y, z, _] = v.map(|pair| f16s(pair >> 16));
            assert!(same(two >> 16, want(x, y, z), f16s, to_f), "{paired} {v:x?} {two:x}");
        }
    }
    check(
        &INTEGERS,
        Result::Bits,
        &[
            ("neg.bf16 %ho, %h0;", |v| h(v[0] ^ 0x8000)),
            ("abs.f16 %ho, %h0;", |v| v[0] & 0x7fff),
            ("neg.f16x2 %wo, %w0;", |v| u(v[0] ^ 0x8000_8000)),
            ("abs.bf16x2 %wo, %w0;", |v| v[0] & 0x7fff_7fff),
        ],
    );
    check(
        &INTEGERS,
        Result::F32,
        &[
            ("cvt.f32.bf16 %wo, %h0;", |v| h(v[0]) << 16),
            ("cvt.f32.f16 %wo, %h0;", |v| b(f16::from_bits(v[0] as u16).to_f32())),
        ],
    );
}

#[test]
fn what_is_not_known_is_refused() {
    for instruction in [
        "frob.s32 %wo, %w0, %w1;",
        "add.sat.s32 %wo, %w0, %w1;",
        "add.ftz.f32 %wo, %w0, %w1;",
        "div.approx.f32 %wo, %w0, %w1;",
        "add.s32 %wo, %d0, %w1;",
        "add.s32 %wo, %w0;",
        "add.s32 %wo, %w0, %unknown;",
        "setp.lo.s32 %po, %w0, %w1;",
        "setp.lt.b32 %po, %w0, %w1;",
        "cvt.f32.s32 %wo, %w0;",
        "cvt.rn.s32.f32 %wo, %w0;",
        "cvt.f32.f64 %wo, %d0;",
        "cvt.rni.f32.s32 %wo, %w0;",
        "cvt.rn.bf16.f64 %ho, %d0;",
        "ld.global.mmio.b32 %wo, [%in];",
        "ld.local.b32 %wo, [%in];",
        "ld.global.v8.b32 {%wo, %w0}, [%in];",
        "ld.global.v2.b32 {%wo}, [%in];",
        "st.volatile.global.b32 [%in], %w0;",
        "atom.global.add.f32 %wo, [%in], %w0;",
        "atom.acq_rel.gpu.global.add.u32 %wo, [%in], %w0;",
        "shfl.bfly.b32 %wo, %w0, 1, 31;",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%wo}, {%w0}, {%w1}, {%w2};",
        "cp.async.bulk.commit_group;",
        "cp.async.cg.shared.global [%w0], [%in], 8;",
        "bra $nowhere;",
        ".local .b8 depot[16];",
        "call foo;",
        "trap;",
    ] {
        let text = format!(
            ".version 9.0\n.target sm_80\n.visible .entry k()\n{{ .reg .b16 %h<4>, %ho;
            .reg .b32 %w<4>, %wo; .reg .b64 %d<4>, %in; .reg .pred %po;\n{instruction}\nret; }}\n"
        );
        assert!(Module::parse(&text).is_err(), "{instruction}");
    }
}

#[test]
fn a_kernel_must_end() {
    for (body, ends) in [
        ("ret;", true),
        ("$a: bra $a;", true),
        ("bra $a; $a: ret;", true),
        ("bra $a; ret; $a:", false),
        ("ret; mov.u32 %w, 0;", false),
        ("setp.eq.u32 %p, 0, 0; @%p ret;", false),
        ("", false),
    ] {
        let text = format!(
            ".version 9.0\n.target sm_80\n.visible .entry k()\n
            {{ .reg .pred %p; .reg .b32 %w; {body} }}\n"
        );
        assert_eq!(Module::parse(&text).is_ok(), ends, "{body}");
    }
}
