//! What a launch is stopped for, and that what is right next to it is not.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use ptx_interpreter::{Fault, Kind, Memory, Module, Shape};

/// A buffer of 64 words that hold their numbers, one of 64 that nobody wrote, and a count of 64.
fn launch(body: &str, grid: u32, block: u32) -> Result<(), Fault> {
    let text = format!(
        ".version 9.0\n.target sm_80\n.address_size 64
        .visible .entry k(.param .u64 full, .param .u64 empty, .param .u32 count)\n{{
        .reg .b32 %w<16>; .reg .b32 %t, %n, %at, %b; .reg .b64 %full, %empty, %f, %e, %d<8>;
        .reg .pred %p<8>; .shared .align 16 .b8 tile[256]; .shared .align 16 .b8 other[256];
        ld.param.u64 %full, [full]; ld.param.u64 %empty, [empty]; ld.param.u32 %n, [count];
        mov.u32 %t, %tid.x; mov.u32 %b, %ctaid.x; mov.u32 %at, tile; mad.lo.s32 %at, %t, 4, %at;
        mad.wide.u32 %f, %t, 4, %full; mad.wide.u32 %e, %t, 4, %empty;
        {body}
        ret;\n}}\n"
    );
    let module = Module::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let mut memory = Memory::default();
    let (full, empty) = (memory.alloc(256), memory.alloc(256));
    let bytes: Vec<u8> = (0..64u32).flat_map(u32::to_le_bytes).collect();
    memory.upload(&bytes, full).unwrap();
    let shape = Shape { grid: [grid, 1, 1], block: [block, 1, 1], shared_bytes: 0 };
    let args =
        [full.to_le_bytes().to_vec(), empty.to_le_bytes().to_vec(), 64u32.to_le_bytes().to_vec()];
    module.launch(&mut memory, "k", &shape, &args).map(|_| ())
}

fn check(cases: &[(&str, u32, u32, Option<Kind>)]) {
    for &(body, grid, block, want) in cases {
        let got = launch(body, grid, block);
        let kind = got.as_ref().err().map(|fault| fault.kind);
        assert_eq!(kind, want, "{body}\n{}", got.map_or_else(|f| f.to_string(), |()| "-".into()));
    }
}

#[test]
fn bounds_and_alignment() {
    use Kind::{Misaligned, OutOfBounds};
    check(&[
        ("ld.global.u32 %w0, [%f];", 1, 64, None),
        ("ld.global.u32 %w0, [%f];", 1, 65, Some(OutOfBounds)),
        ("ld.global.u32 %w0, [%full+-4];", 1, 1, Some(OutOfBounds)),
        ("ld.global.u32 %w0, [0];", 1, 1, Some(OutOfBounds)),
        (
            "cvt.u32.u64 %w1, %full; cvt.u64.u32 %d0, %w1; ld.global.u32 %w0, [%d0];",
            1,
            1,
            Some(OutOfBounds),
        ),
        ("st.global.u32 [%e], 1;", 1, 64, None),
        ("st.global.u32 [%e], 1;", 1, 65, Some(OutOfBounds)),
        ("ld.global.v4.u32 {%w0, %w1, %w2, %w3}, [%full+240];", 1, 1, None),
        ("ld.global.v4.u32 {%w0, %w1, %w2, %w3}, [%full+244];", 1, 1, Some(Misaligned)),
        ("ld.global.v4.u32 {%w0, %w1, %w2, %w3}, [%full+256];", 1, 1, Some(OutOfBounds)),
        ("ld.global.u32 %w0, [%full+2];", 1, 1, Some(Misaligned)),
        ("st.shared.u32 [tile+252], 1; st.shared.u32 [other], 1;", 1, 1, None),
        ("st.shared.u32 [tile+256], 1;  st.shared.u32 [other], 1;", 1, 1, Some(OutOfBounds)),
        ("st.shared.u32 [other+256], 1;", 1, 1, Some(OutOfBounds)),
        ("st.shared.u64 [tile+4], 1;", 1, 1, Some(Misaligned)),
        ("ld.param.u32 %w0, [count+4];", 1, 1, Some(OutOfBounds)),
        ("ld.param.u64 %d0, [count];", 1, 1, Some(OutOfBounds)),
        ("cp.async.ca.shared.global [tile], [%full+252], 4; cp.async.wait_all;", 1, 1, None),
        (
            "cp.async.ca.shared.global [tile], [%full+256], 4; cp.async.wait_all;",
            1,
            1,
            Some(OutOfBounds),
        ),
        (
            "cp.async.cg.shared.global [tile+256], [%full], 16;
             cp.async.wait_all; st.shared.u32 [other], 1;",
            1,
            1,
            Some(OutOfBounds),
        ),
        (
            "cp.async.cg.shared.global [tile], [%full+8], 16; cp.async.wait_all;",
            1,
            1,
            Some(Misaligned),
        ),
    ]);
}

#[test]
fn what_nobody_wrote() {
    use Kind::{AsyncCopy, Uninitialised};
    let copy = "cp.async.ca.shared.global [tile], [%full], 4; cp.async.commit_group;";
    let full = |rest: &str| format!("{copy} {rest} cp.async.wait_all;");
    check(&[
        ("ld.global.u32 %w0, [%empty];", 1, 1, Some(Uninitialised)),
        ("st.global.u32 [%e], 1; ld.global.u32 %w0, [%e];", 1, 8, None),
        ("st.global.u8 [%empty], 1; ld.global.u16 %w0, [%empty];", 1, 1, Some(Uninitialised)),
        ("ld.shared.u32 %w0, [tile];", 1, 1, Some(Uninitialised)),
        // Of the block before nothing is left.
        (
            "setp.eq.u32 %p0, %b, 0; @%p0 st.shared.u32 [tile], 1; ld.shared.u32 %w0, [tile];",
            2,
            1,
            Some(Uninitialised),
        ),
        ("add.s32 %w0, %w1, 1;", 1, 1, Some(Uninitialised)),
        (
            "setp.eq.u32 %p0, %t, 0; @%p0 mov.u32 %w1, 1; add.s32 %w0, %w1, 1;",
            1,
            2,
            Some(Uninitialised),
        ),
        ("setp.eq.u32 %p0, %t, 0; @%p0 mov.u32 %w1, 1; @%p0 add.s32 %w0, %w1, 1;", 1, 2, None),
        ("@%p3 bra $end; $end:", 1, 1, Some(Uninitialised)),
        // What is only moved is not used yet.
        ("mov.u32 %w0, %w1; add.s32 %w0, %t, 0;", 1, 1, None),
        ("mov.u32 %w0, %w1; add.s32 %w2, %w0, 0;", 1, 1, Some(Uninitialised)),
        ("selp.b32 %w0, %t, %w1, %p0;", 1, 1, Some(Uninitialised)),
        ("setp.eq.u32 %p0, 0, 0; selp.b32 %w0, %t, %w1, %p0;", 1, 1, None),
        ("st.global.u32 [%empty], %w1;", 1, 1, Some(Uninitialised)),
        (&full("ld.shared.u32 %w0, [tile];"), 1, 1, Some(Uninitialised)),
        (&full("cp.async.wait_group 1; ld.shared.u32 %w0, [tile];"), 1, 1, Some(Uninitialised)),
        (&full("cp.async.wait_group 0; ld.shared.u32 %w0, [tile];"), 1, 1, None),
        // What was there is gone from when the copy is asked for.
        (
            &format!("st.shared.u32 [tile], 5; {}", full("ld.shared.u32 %w0, [tile];")),
            1,
            1,
            Some(Uninitialised),
        ),
        (copy, 1, 1, Some(AsyncCopy)),
    ]);
}

#[test]
fn races() {
    use Kind::{GlobalRace, SharedRace};
    let one = "setp.eq.u32 %p0, %t, 0; setp.eq.u32 %p1, %t, 33; setp.eq.u32 %p2, %t, 1;";
    let with = |rest: &str| format!("{one} {rest}");
    check(&[
        ("st.shared.u32 [tile], 1;", 1, 2, Some(SharedRace)),
        (
            &with("@%p0 st.shared.u32 [tile], 1; bar.sync 0; ld.shared.u32 %w0, [tile];"),
            1,
            64,
            None,
        ),
        (
            &with("@%p0 st.shared.u32 [tile], 1; @%p1 ld.shared.u32 %w0, [tile];"),
            1,
            64,
            Some(SharedRace),
        ),
        (
            &with(
                "@%p0 st.shared.u32 [tile], 1; bar.sync 0; ld.shared.u32 %w0, [tile];
                @%p1 st.shared.u32 [tile], 2;",
            ),
            1,
            64,
            Some(SharedRace),
        ),
        (
            &with(
                "@%p0 st.shared.u32 [tile], 1; bar.sync 0; ld.shared.u32 %w0, [tile]; bar.sync 0;
                @%p1 st.shared.u32 [tile], 2;",
            ),
            1,
            64,
            None,
        ),
        (
            &with(
                "@%p0 st.shared.u32 [tile], 1; bar.warp.sync -1; @%p2 ld.shared.u32 %w0, [tile];",
            ),
            1,
            32,
            None,
        ),
        (
            &with("@%p0 st.shared.u32 [tile], 1; @%p2 ld.shared.u32 %w0, [tile];"),
            1,
            32,
            Some(SharedRace),
        ),
        // A shuffle makes no order in memory.
        (
            &with(
                "@%p0 st.shared.u32 [tile], 1; shfl.sync.idx.b32 %w1, %t, 0, 31, -1;
                @%p2 ld.shared.u32 %w0, [tile];",
            ),
            1,
            32,
            Some(SharedRace),
        ),
        // Neighbours in a word do not race if they keep to their bytes.
        ("mov.u32 %w0, tile; add.s32 %w0, %w0, %t; st.shared.u8 [%w0], 1;", 1, 64, None),
        // A copy into what others still read.
        (
            &with(
                "@%p0 st.shared.u32 [tile], 1; bar.sync 0; @%p1 ld.shared.u32 %w0, [tile];
                @%p0 cp.async.ca.shared.global [tile], [%full], 4; cp.async.wait_all;",
            ),
            1,
            64,
            Some(SharedRace),
        ),
        // A copy that has landed for its own thread only.
        (
            &with(
                "@%p0 cp.async.ca.shared.global [tile], [%full], 4; cp.async.wait_all;
                @%p1 ld.shared.u32 %w0, [tile];",
            ),
            1,
            64,
            Some(SharedRace),
        ),
        ("st.global.u32 [%empty], 1;", 2, 1, Some(GlobalRace)),
        ("st.global.u32 [%empty], 1;", 1, 2, Some(GlobalRace)),
        (
            &with("@%p0 st.global.u32 [%empty], 1; bar.sync 0; ld.global.u32 %w0, [%empty];"),
            1,
            64,
            None,
        ),
        (
            "ld.global.u32 %w0, [%full]; setp.eq.u32 %p0, %b, 1; @%p0 st.global.u32 [%full], 1;",
            2,
            1,
            Some(GlobalRace),
        ),
        (
            "setp.eq.u32 %p0, %b, 0; @%p0 st.global.u32 [%full], 1; ld.global.u32 %w0, [%full];",
            2,
            1,
            Some(GlobalRace),
        ),
        ("red.global.add.u32 [%full], 1;", 3, 64, None),
        ("red.global.add.u32 [%full], 1; ld.global.u32 %w0, [%full];", 2, 1, Some(GlobalRace)),
    ]);
}

#[test]
fn barriers_and_warps() {
    use Kind::{Barrier, Endless, Warp};
    let some = "setp.lt.u32 %p0, %t, 5;";
    let with = |rest: &str| format!("{some} {rest}");
    check(&[
        ("bar.sync 0;", 1, 40, None),
        (&with("@%p0 ret; bar.sync 0;"), 1, 40, Some(Barrier)),
        (&with("@%p0 bar.sync 0; @!%p0 bar.sync 0;"), 1, 40, Some(Barrier)),
        ("bar.sync 1;", 1, 40, Some(Barrier)),
        ("bar.sync 0, 32;", 1, 64, Some(Barrier)),
        ("shfl.sync.bfly.b32 %w0, %t, 1, 31, -1;", 1, 32, None),
        ("shfl.sync.bfly.b32 %w0, %t, 1, 31, -1;", 1, 31, Some(Warp)),
        (&with("@%p0 ret; shfl.sync.bfly.b32 %w0, %t, 1, 31, -1;"), 1, 32, Some(Warp)),
        // The lanes that read a lane which the mask leaves out.
        (&with("@%p0 shfl.sync.bfly.b32 %w0, %t, 8, 31, 0x1f;"), 1, 32, Some(Warp)),
        (&with("@%p0 shfl.sync.bfly.b32 %w0, %t, 1, 31, 0xf;"), 1, 32, Some(Warp)),
        (&with("@!%p0 bra $a; shfl.sync.idx.b32 %w0, %t, 0, 31, 0x1f; $a:"), 1, 32, None),
        // The same mask at two instructions.
        (&with("@%p0 bar.warp.sync -1; @!%p0 bar.warp.sync -1;"), 1, 32, Some(Warp)),
        (&with("@%p0 bar.sync 0; @!%p0 bar.warp.sync -1;"), 1, 32, Some(Warp)),
        (
            &with(
                "@%p0 ret; mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
                {%w0,%w1,%w2,%w3}, {%t,%t,%t,%t}, {%t,%t}, {%t,%t,%t,%t};",
            ),
            1,
            32,
            Some(Warp),
        ),
        ("$again: bra $again;", 1, 1, Some(Endless)),
        ("div.s32 %w0, %n, %t;", 1, 1, Some(Kind::DivisionByZero)),
        ("rem.u32 %w0, %n, %t;", 1, 2, Some(Kind::DivisionByZero)),
        ("setp.ne.u32 %p0, %t, 0; @%p0 div.s32 %w0, %n, %t;", 1, 2, None),
    ]);
}

#[test]
fn what_a_launch_is_given() {
    let text = "
        .version 9.0\n.target sm_80
        .visible .entry k(.param .u64 a, .param .u32 n) .maxntid 64, 1, 1\n{
        .shared .align 4 .b8 tile[40000];\n.extern .shared .align 16 .b8 more[];
        .reg .b32 %r<4>; mov.u32 %r0, %tid.x; st.shared.u8 [more], 1; st.shared.u8 [tile], 1;
        ret;\n}\n"
        .replace(".extern .shared", ".shared");
    let module = Module::parse(&text).unwrap();
    let (address, count) = (vec![0; 8], vec![0; 4]);
    let right = vec![address.clone(), count.clone()];
    let go = |entry: &str, grid: [u32; 3], block: [u32; 3], shared_bytes, args: &[Vec<u8>]| {
        let shape = Shape { grid, block, shared_bytes };
        module.launch(&mut Memory::default(), entry, &shape, args).err().map(|fault| fault.kind)
    };
    let one = [1, 1, 1];
    assert_eq!(go("k", one, one, 16, &right), None);
    assert_eq!(go("j", one, one, 16, &right), Some(Kind::UnknownKernel));
    assert_eq!(go("k", one, one, 0, &right), Some(Kind::OutOfBounds));
    assert_eq!(go("k", one, one, 16, &right[..1]), Some(Kind::Arguments));
    let wide = [address.clone(), address.clone()];
    assert_eq!(go("k", one, one, 16, &wide), Some(Kind::Arguments));
    let more = [right.clone(), vec![count]].concat();
    assert_eq!(go("k", one, one, 16, &more), Some(Kind::Arguments));
    for (grid, block, shared_bytes) in [
        (one, [65, 1, 1], 16),
        (one, [0, 1, 1], 16),
        ([0, 1, 1], one, 16),
        ([1, 65_536, 1], one, 16),
        (one, one, 70_000),
    ] {
        assert_eq!(
            go("k", grid, block, shared_bytes, &right),
            Some(Kind::Shape),
            "{grid:?} {block:?}"
        );
    }
}

#[test]
fn a_complaint_says_where() {
    let text = "\n.version 9.0\n.target sm_80\n.file 1 \"/a/b/pool.cu\"\n\
        .visible .entry pool()\n{\n\
        .reg .b32 %r<4>; .reg .b64 %d<2>; .reg .pred %p;\n.loc 1 42 7\nmov.u32 %r0, %tid.x;\n\
        setp.eq.u32 %p, %r0, 37;\n.loc 1 43 7\n@%p ld.global.u32 %r1, [16];\nret;\n}\n";
    let module = Module::parse(text).unwrap();
    let shape = Shape { grid: [1, 2, 1], block: [40, 2, 1], shared_bytes: 0 };
    let fault = module.launch(&mut Memory::default(), "pool", &shape, &[]).unwrap_err();
    assert_eq!(
        fault.to_string(),
        "OutOfBounds: 4 bytes of global memory at 0x10, where no buffer is (pool, PTX line 12, \
         pool.cu:43, block [0, 0, 0], thread [37, 0, 0])"
    );
    let error = Module::parse(&text.replace("setp.eq", "setp.like")).map(|_| ()).unwrap_err();
    assert_eq!(error.line, 10);
}
