//! The C program of the guide, as the guide prints it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::stamp::{self, Inputs};
use crate::command::{command, output};
use crate::host::Isa;
use crate::tree::Tree;

/// The page that has it.
const PAGE: &str = "docs/guest.md";

/// Where suites find it, below their root.
pub const IN_ROOT: &str = "guide/leaf";

/// Compiles it unless it is current; returns the static program.
pub fn c_program(tree: &Tree, isa: Isa) -> Result<PathBuf> {
    let page = fs::read_to_string(tree.root().join(PAGE))
        .with_context(|| format!("Cannot read {PAGE}"))?;
    let source = fenced(&page, "c").with_context(|| format!("{PAGE} has no C program"))?;
    // As the page says below the program.
    let source = match isa {
        Isa::Vmx => source.to_owned(),
        Isa::Svm => source.replacen("48", "0x400", 1),
    };
    let program = tree.cache().join(format!("guide/leaf-{}", isa.as_str()));
    let hash = Inputs::new().value(&source).hash();
    stamp::unless_current(&program, &hash, || {
        let file = program.with_extension("c");
        fs::write(&file, &source).with_context(|| format!("Cannot write {}", file.display()))?;
        let options = ["-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o"];
        output(command("gcc", options).arg(&program).arg(&file)).map(drop)
    })?;
    Ok(program)
}

/// What stands in the page's only block of code in a language.
pub fn fenced<'a>(page: &'a str, language: &str) -> Result<&'a str> {
    let start = format!("```{language}\n");
    let mut blocks = page.match_indices(&start);
    let (at, _) = blocks.next().context("There is no such block")?;
    ensure!(blocks.next().is_none(), "There are several such blocks");
    let code = &page[at + start.len()..];
    let end = code.find("```").context("The block does not end")?;
    Ok(&code[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_found_between_its_fences() {
        let page = "x\n```c\nint a;\n```\n```sh\nls\n```\n";
        assert_eq!(fenced(page, "c").unwrap(), "int a;\n");
        assert!(fenced(page, "python").is_err());
        assert!(fenced("```c\n```\n```c\n```\n", "c").is_err());
    }
}
