//! The modules that ship can be parsed. Where they lie is two folders up; this crate is of that
//! tree.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use std::path::Path;

use ptx_interpreter::Module;

#[test]
fn all_that_ships_is_known() {
    let room = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/ptx");
    let mut seen = 0;
    for entry in std::fs::read_dir(room).unwrap() {
        let path = entry.unwrap().path();
        let module = Module::parse(&std::fs::read_to_string(&path).unwrap());
        let module = module.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        seen += module.entries().len();
    }
    assert!(seen > 0);
}
