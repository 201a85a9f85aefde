//! Every way through a compiled `vcpu_run()` counts one exit: read from the
//! disassembly, with accounting on.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::command::{command, text};

/// What counts an exit that no entry preceded.
const NO_ENTRY: &str = "kvm_exit_stats_no_entry";

/// What was found in one function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returns {
    /// Places where the function ends.
    pub ends: usize,
    /// Places where it counts.
    pub counts: usize,
}

/// Follows every way through a function of an object file, and fails where one
/// ends without a count, or with two.
pub fn counted_returns(object: &Path, function: &str) -> Result<Returns> {
    let listing = text(command("objdump", ["-dr", "--no-show-raw-insn"]).arg(object))?;
    let stat = member(object, "kvm_vcpu", "stat")?.start;
    let array = member(object, "kvm_vcpu_stat", "exits_by_reason")?;
    Code::parse(&listing)
        .follow(function, &(stat + array.start..stat + array.end))
        .with_context(|| format!("{function} of {}", object.display()))
}

/// The bytes that a member has in its structure, by the object's debug data.
pub fn member(object: &Path, structure: &str, name: &str) -> Result<Range<u64>> {
    let shown = text(command("pahole", ["-C", structure]).arg(object))?;
    find_member(&shown, name)
        .with_context(|| format!("{structure} of {} has no {name}", object.display()))
}

/// The same of a module without debug data, by its BTF and that of its kernel.
pub fn member_by_btf(
    image: &Path,
    module: &Path,
    structure: &str,
    name: &str,
) -> Result<Range<u64>> {
    let mut pahole = command("pahole", ["-F", "btf", "--btf_base"]);
    pahole.arg(image).args(["-C", structure]).arg(module);
    find_member(&text(&mut pahole)?, name)
        .with_context(|| format!("{structure} of {} has no {name}", module.display()))
}

/// One of `u64 exits; /* 904 8 */`.
fn find_member(shown: &str, name: &str) -> Option<Range<u64>> {
    shown.lines().find_map(|line| {
        let (declared, place) = line.split_once(';')?;
        let declared = declared.split_whitespace().last()?;
        let declared = declared.split('[').next()?.trim_start_matches('*');
        if declared != name {
            return None;
        }
        let mut words = place.split_whitespace().skip(1);
        let start: u64 = words.next()?.parse().ok()?;
        let size: u64 = words.next()?.parse().ok()?;
        Some(start..start + size)
    })
}

/// A place in the code: the section's number in the listing, and the offset.
type Place = (usize, u64);

#[derive(Debug)]
struct Instruction {
    mnemonic: String,
    operands: String,
    /// What the linker puts in.
    symbol: Option<String>,
    next: Option<Place>,
}

struct Code {
    sections: Vec<String>,
    functions: BTreeMap<String, Place>,
    instructions: BTreeMap<Place, Instruction>,
}

impl Code {
    fn parse(listing: &str) -> Code {
        let mut code = Code {
            sections: Vec::new(),
            functions: BTreeMap::new(),
            instructions: BTreeMap::new(),
        };
        let mut last: Option<Place> = None;
        for line in listing.lines() {
            if let Some(name) = line.strip_prefix("Disassembly of section ") {
                code.sections.push(name.trim_end_matches(':').to_owned());
                last = None;
                continue;
            }
            let Some(section) = code.sections.len().checked_sub(1) else {
                continue;
            };
            if let Some((offset, name)) = line
                .strip_suffix(">:")
                .and_then(|line| line.split_once(" <"))
            {
                if let Ok(offset) = u64::from_str_radix(offset, 16) {
                    code.functions.insert(name.to_owned(), (section, offset));
                }
                continue;
            }
            let Some((offset, rest)) = line.trim_start().split_once(':') else {
                continue;
            };
            if let Some((_, symbol)) = rest.trim_start().split_once('\t')
                && rest.trim_start().starts_with("R_X86_64_")
            {
                if let Some(instruction) = last.and_then(|at| code.instructions.get_mut(&at)) {
                    instruction.symbol = Some(symbol.trim().to_owned());
                }
                continue;
            }
            let Ok(offset) = u64::from_str_radix(offset, 16) else {
                continue;
            };
            let mut words = rest.split_whitespace();
            let mut mnemonic = words.next().unwrap_or_default();
            // Prefixes and hints to the branch predictor.
            while ["notrack", "lock", "rep", "bnd", "cs", "data16"].contains(&mnemonic) {
                mnemonic = words.next().unwrap_or_default();
            }
            let at = (section, offset);
            if let Some(before) = last.and_then(|before| code.instructions.get_mut(&before)) {
                before.next = Some(at);
            }
            code.instructions.insert(
                at,
                Instruction {
                    mnemonic: mnemonic.split(',').next().unwrap_or_default().to_owned(),
                    operands: words.collect::<Vec<_>>().join(" "),
                    symbol: None,
                    next: None,
                },
            );
            last = Some(at);
        }
        code
    }

    fn follow(&self, function: &str, counters: &Range<u64>) -> Result<Returns> {
        let start = *self.functions.get(function).context("There is none")?;
        let mut seen = BTreeSet::new();
        let mut ends = BTreeSet::new();
        let mut counts = BTreeSet::new();
        let mut open = vec![(start, 0)];
        while let Some((at, mut counted)) = open.pop() {
            if !seen.insert((at, counted)) {
                continue;
            }
            let instruction = self
                .instructions
                .get(&at)
                .with_context(|| format!("A way leads to {:#x}, where no code is", at.1))?;
            if instruction.counts(counters) {
                counts.insert(at);
                counted += 1;
                ensure!(counted == 1, "A way counts twice, at {:#x}", at.1);
            }
            let mut goes_to = |to| open.push((to, counted));
            match self.kind(at, instruction)? {
                Kind::End => {
                    ensure!(counted == 1, "A way ends without a count, at {:#x}", at.1);
                    ends.insert(at);
                }
                Kind::Never => {}
                Kind::Goes(to) => goes_to(to),
                Kind::MayGo(to) => {
                    goes_to(to);
                    goes_to(
                        instruction
                            .next
                            .context("A branch is the last instruction")?,
                    );
                }
                Kind::On => goes_to(instruction.next.context("The code has no end")?),
            }
        }
        ensure!(!ends.is_empty(), "No way ends");
        Ok(Returns {
            ends: ends.len(),
            counts: counts.len(),
        })
    }

    fn kind(&self, at: Place, instruction: &Instruction) -> Result<Kind> {
        let name = instruction.mnemonic.as_str();
        let symbol = instruction.symbol.as_deref();
        Ok(match name {
            "ret" | "retq" => Kind::End,
            "call" | "callq" if symbol.is_some_and(|to| to.starts_with("__stack_chk_fail")) => {
                Kind::Never
            }
            _ if !name.starts_with('j') => Kind::On,
            "jmp" | "jmpq" if instruction.operands.starts_with('*') => {
                bail!("A jump to where a register says, at {:#x}", at.1)
            }
            _ => match (self.target(at, instruction), name) {
                (Some(to), "jmp" | "jmpq") => Kind::Goes(to),
                (Some(to), _) => Kind::MayGo(to),
                // To another function, which returns in our place.
                (None, _) => Kind::End,
            },
        })
    }

    /// Where a jump goes; `None` for another function.
    fn target(&self, at: Place, jump: &Instruction) -> Option<Place> {
        let Some(symbol) = &jump.symbol else {
            let offset = jump.operands.split_whitespace().next()?;
            return Some((at.0, u64::from_str_radix(offset, 16).ok()?));
        };
        // The linker counts from the end of a jump's four bytes.
        let (name, sign, by) = match symbol.rfind(['+', '-']) {
            Some(cut) => (&symbol[..cut], &symbol[cut..=cut], &symbol[cut + 1..]),
            None => (symbol.as_str(), "+", "0"),
        };
        let by = u64::from_str_radix(by.trim_start_matches("0x"), 16).ok()?;
        let by = if sign == "-" { by.wrapping_neg() } else { by }.wrapping_add(4);
        let section = self.sections.iter().position(|section| section == name);
        let cold = || name.ends_with(".cold").then(|| self.functions.get(name))?;
        match section {
            Some(section) => Some((section, by)),
            None => cold().map(|(section, start)| (*section, start.wrapping_add(by))),
        }
    }
}

enum Kind {
    /// The function returns.
    End,
    /// Nothing comes after it.
    Never,
    Goes(Place),
    MayGo(Place),
    /// To the next instruction.
    On,
}

impl Instruction {
    /// Whether it adds one to a count of exits by reason, or calls what does.
    fn counts(&self, counters: &Range<u64>) -> bool {
        if self.mnemonic.starts_with("call") {
            return self
                .symbol
                .as_deref()
                .is_some_and(|symbol| symbol.starts_with(NO_ENTRY));
        }
        self.mnemonic == "addq"
            && self
                .operands
                .strip_prefix("$0x1,0x")
                .and_then(|place| place.split('(').next())
                .and_then(|offset| u64::from_str_radix(offset, 16).ok())
                .is_some_and(|offset| counters.contains(&offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTERS: Range<u64> = 0x1948..0x1ea8;

    fn followed(text: &str, cold: &str) -> Result<Returns> {
        let listing = format!(
            "\nvmx.o:     file format elf64-x86-64\n\n\
             Disassembly of section .text:\n\n0000000000000010 <vmx_vcpu_run>:\n{text}\n\
             Disassembly of section .text.unlikely:\n\n\
             0000000000000000 <vmx_vcpu_run.cold>:\n{cold}\n"
        );
        Code::parse(&listing).follow("vmx_vcpu_run", &COUNTERS)
    }

    const COLD: &str = "   0:\tud2\n   2:\tjmp    7 <vmx_vcpu_run.cold+0x7>\n\
                        \t\t\t3: R_X86_64_PC32\t.text+0x1a\n";

    #[test]
    fn every_way_counts_once() {
        let good = "  10:\tje     19 <vmx_vcpu_run+0x9>\n\
                    \t\t\t15: R_X86_64_PC32\t.text.unlikely-0x4\n\
                    \x20 15:\tmov    %edx,0x110(%rbx)\n\
                    \x20 1a:\tnopl   0x0(%rax)\n\
                    \x20 1e:\taddq   $0x1,0x1948(%rbx,%rax,8)\n\
                    \x20 27:\tjmp    2c <vmx_vcpu_run+0x1c>\n\
                    \t\t\t28: R_X86_64_PLT32\t__x86_return_thunk-0x4\n";
        let returns = followed(good, COLD).unwrap();
        assert_eq!(returns, Returns { ends: 1, counts: 1 });
    }

    #[test]
    fn a_way_without_a_count_and_one_with_two_are_found() {
        let early = "  10:\tjs     1e <vmx_vcpu_run+0xe>\n\
                     \x20 15:\taddq   $0x1,0x1bf8(%rbx)\n\
                     \x20 1e:\tret\n";
        let error = followed(early, COLD).unwrap_err().to_string();
        assert!(error.contains("without a count, at 0x1e"), "{error}");
        let twice = "  10:\taddq   $0x1,0x1948(%rbx,%rax,8)\n\
                     \x20 19:\tcall   1e <vmx_vcpu_run+0xe>\n\
                     \t\t\t1a: R_X86_64_PLT32\tkvm_exit_stats_no_entry-0x4\n\
                     \x20 1e:\tret\n";
        let error = followed(twice, COLD).unwrap_err().to_string();
        assert!(error.contains("twice, at 0x19"), "{error}");
    }

    #[test]
    fn members_are_found_with_place_and_size() {
        let shown = "struct kvm_vcpu_stat {\n\tu64   signal_exits;   /*   928     8 */\n\
                     \tu64   exits_by_reason[172]; /*  1120  1376 */\n\
                     \tstruct kvm_run * run;  /*   104     8 */\n};";
        assert_eq!(find_member(shown, "signal_exits"), Some(928..936));
        assert_eq!(find_member(shown, "exits_by_reason"), Some(1120..2496));
        assert_eq!(find_member(shown, "run"), Some(104..112));
        assert_eq!(find_member(shown, "exits"), None);
    }
}
