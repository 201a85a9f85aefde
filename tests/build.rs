//! Assembles the guests that are too long to write as bytes.

use std::env;
use std::path::Path;
use std::process::Command;

const GUESTS: [&str; 6] = [
    "emulated",
    "hostile",
    "many_exits",
    "nested",
    "resets",
    "steps",
];

fn main() {
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    println!("cargo::rerun-if-changed=guests");
    for guest in GUESTS {
        let object = Path::new(&out).join(format!("{guest}.o"));
        let image = Path::new(&out).join(format!("{guest}.bin"));
        run(Command::new("as")
            .args(["--32", "--fatal-warnings", "-I", "guests", "-o"])
            .arg(&object)
            .arg(format!("guests/{guest}.S")));
        run(Command::new("ld")
            .args(["-m", "elf_i386", "-Ttext=0x100000", "--oformat=binary"])
            .args(["-z", "noseparate-code", "-o"])
            .arg(&image)
            .arg(&object));
    }
}

fn run(command: &mut Command) {
    let status = command.status();
    assert!(
        status.as_ref().is_ok_and(|status| status.success()),
        "{command:?} failed ({status:?}); the lab needs binutils"
    );
}
