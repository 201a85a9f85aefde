//! The hooks on every kernel source that Debian's releases have today.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};

use crate::artifact::kernel::{Kernel, Series};
use crate::artifact::modules::{self, KVM_FOLDER};
use crate::artifact::packages::ensure_installed;
use crate::check::{counted_returns, member, member_by_btf};
use crate::command::{command, output};
use crate::progress::step;
use crate::tree::Tree;

/// Releases of Debian beside this machine's own, whose kernels the lab boots.
const SUITES: [&str; 3] = ["trixie", "trixie-backports", "testing"];

/// Both entries into a guest: the module, because the kernel makes jumps of static
/// branches into what they are only when it links one, and the function.
const ENTRIES: [(&str, &str); 2] = [
    ("kvm-intel.ko", "vmx_vcpu_run"),
    ("kvm-amd.ko", "svm_vcpu_run"),
];

/// Where the kernel's image writes to KVM's structures, in series where it does.
const WRITER: &str = "kernel/entry/kvm.c";

/// Looks at them one after the other; an error tells which do not hold.
pub fn kernels(tree: &Tree, wanted: Option<&str>) -> Result<()> {
    ensure_installed()?;
    let mut kernels = BTreeMap::new();
    for kernel in Series::ALL.map(|series| Kernel::fetch(tree, series)) {
        let kernel = kernel?;
        kernels.entry(kernel.release.clone()).or_insert(kernel);
    }
    for suite in SUITES {
        let kernel = Kernel::of_suite(tree, suite)?;
        kernels.entry(kernel.release.clone()).or_insert(kernel);
    }
    if let Some(wanted) = wanted {
        kernels.retain(|release, _| release.contains(wanted));
        ensure!(
            !kernels.is_empty(),
            "No kernel's release contains {wanted:?}"
        );
    }
    let mut failed = Vec::new();
    for (release, kernel) in kernels {
        println!("\n== Linux {release} ({}) ==", kernel.version);
        if let Err(error) = look_at(tree, &kernel) {
            println!("{error:#}");
            failed.push(release);
        }
    }
    ensure!(failed.is_empty(), "Not supported: {}", failed.join(", "));
    Ok(())
}

fn look_at(tree: &Tree, kernel: &Kernel) -> Result<()> {
    let patches = tree.root().join("instrumentation/kvm/patches");
    let own = patches.join(format!("{}.patch", kernel.series));
    if !own.is_file() {
        return no_patch(tree, kernel, &patches);
    }
    if let Some(misfits) = misfits(tree, kernel, &own)? {
        bail!("The patch of its series does not fit any more:\n{misfits}");
    }
    println!("the patch applies");
    modules::build(tree, kernel)?;
    let folder = modules::prepared_tree(tree, kernel)?.join(KVM_FOLDER);
    for (object, function) in ENTRIES {
        let returns = counted_returns(&folder.join(object), function)?;
        println!(
            "{function}: each way to its {} ends passes one of {} counts",
            returns.ends, returns.counts
        );
    }
    nothing_moved(kernel, &folder)
}

/// Says what each patch that there is would need to fit a new series.
fn no_patch(tree: &Tree, kernel: &Kernel, patches: &Path) -> Result<()> {
    let mut needs = String::new();
    for series in Series::ALL {
        let patch = patches.join(format!("{}.patch", series.as_str()));
        match misfits(tree, kernel, &patch)? {
            Some(misfits) => {
                needs.push_str(&format!("\nthe patch of {}:\n{misfits}", series.as_str()));
            }
            None => needs.push_str(&format!(
                "\nthe patch of {} fits: copy it and build",
                series.as_str()
            )),
        }
    }
    bail!("Linux {} has no patch yet{needs}", kernel.series)
}

/// The hunks of a patch that do not fit a kernel's source, each with its function;
/// `None` where all fit.
fn misfits(tree: &Tree, kernel: &Kernel, patch: &Path) -> Result<Option<String>> {
    let text =
        fs::read_to_string(patch).with_context(|| format!("Cannot read {}", patch.display()))?;
    let source = tree.cache().join(format!("hooks-{}", kernel.release));
    if !source.is_dir() {
        let partial = source.with_extension("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        fs::create_dir_all(&partial)?;
        let archive = kernel.source_archive()?;
        step("Unpacking what the hooks touch", || {
            let top = format!("linux-source-{}", kernel.series);
            output(
                command("tar", ["--strip-components=1", "-C"])
                    .arg(&partial)
                    .arg("-xf")
                    .arg(&archive)
                    .args(
                        [
                            KVM_FOLDER,
                            "virt/kvm",
                            "arch/x86/include/asm/kvm_host.h",
                            "include/linux/kvm_host.h",
                        ]
                        .map(|path| format!("{top}/{path}")),
                    ),
            )
            .map(drop)
        })?;
        fs::rename(&partial, &source)?;
    }
    let said = command("patch", ["-p1", "--dry-run", "--force", "-i"])
        .arg(patch)
        .current_dir(&source)
        .stdin(Stdio::null())
        .output()
        .context("Cannot start patch")?;
    if said.status.success() {
        return Ok(None);
    }
    let hunks = functions(&text);
    let misfits = failed_hunks(&String::from_utf8_lossy(&said.stdout))
        .into_iter()
        .map(|(file, hunk)| {
            let function = hunks
                .get(&file)
                .and_then(|hunks| hunks.get(hunk.checked_sub(1)?))
                .map_or("", String::as_str);
            format!("  {file}, hunk {hunk}: {function}\n")
        })
        .collect::<String>();
    ensure!(
        !misfits.is_empty(),
        "patch failed and names no hunk: {}",
        String::from_utf8_lossy(&said.stdout)
    );
    Ok(Some(misfits))
}

/// What `patch` says of hunks that do not fit: file and number.
fn failed_hunks(said: &str) -> Vec<(String, usize)> {
    let mut file = String::new();
    let mut failed = Vec::new();
    for line in said.lines() {
        if let Some(name) = line.strip_prefix("checking file ") {
            file = name.trim_matches('\'').to_owned();
        } else if let Some((hunk, _)) = line
            .strip_prefix("Hunk #")
            .filter(|rest| rest.contains("FAILED"))
            .and_then(|rest| rest.split_once(' '))
            && let Ok(hunk) = hunk.parse()
        {
            failed.push((file.clone(), hunk));
        }
    }
    failed
}

/// The function, or what else git takes for one, of each hunk by file.
fn functions(patch: &str) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut file = String::new();
    for line in patch.lines() {
        if let Some(name) = line.strip_prefix("+++ b/") {
            file = name.to_owned();
        } else if let Some((_, function)) = line
            .strip_prefix("@@ ")
            .and_then(|rest| rest.split_once(" @@"))
        {
            let hunks = all.entry(file.clone()).or_default();
            hunks.push(function.trim().to_owned());
        }
    }
    all
}

/// Where the kernel's image writes to KVM's structures they have kept their places.
fn nothing_moved(kernel: &Kernel, folder: &Path) -> Result<()> {
    let root = folder
        .ancestors()
        .nth(3)
        .context("KVM's folder is not in a tree")?;
    if !root.join(WRITER).is_file() {
        println!("the kernel's image writes nothing of KVM's");
        return Ok(());
    }
    let image = root.join("vmlinux.stock");
    let unpacked =
        output(command("scripts/extract-vmlinux", [kernel.bzimage()]).current_dir(root))?;
    fs::write(&image, unpacked).with_context(|| format!("Cannot write {}", image.display()))?;
    let packed = kernel.stock_module("arch/x86/kvm/kvm")?;
    let stock = root.join("kvm.stock.ko");
    let module = match packed.extension() {
        Some(suffix) if suffix == "xz" => output(command("xz", ["-dc"]).arg(&packed))?,
        _ => fs::read(&packed).with_context(|| format!("Cannot read {}", packed.display()))?,
    };
    fs::write(&stock, module).with_context(|| format!("Cannot write {}", stock.display()))?;
    let ours = folder.join("x86.o");
    for (structure, name) in [
        ("kvm_vcpu", "run"),
        ("kvm_vcpu", "stat"),
        ("kvm_vcpu_stat", "signal_exits"),
    ] {
        let theirs = member_by_btf(&image, &stock, structure, name)?.start;
        let ours = member(&ours, structure, name)?.start;
        ensure!(
            theirs == ours,
            "{structure}.{name} is at {ours}, and at {theirs} for the kernel's image"
        );
    }
    println!("what the kernel's image writes has kept its place");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hunks_that_fail_are_named_with_their_functions() {
        let patch = "--- a/arch/x86/kvm/x86.c\n+++ b/arch/x86/kvm/x86.c\n\
                     @@ -27,6 +27,7 @@\n a\n\
                     @@ -4384,6 +4395,9 @@ int kvm_vm_ioctl_check_extension(struct kvm *kvm)\n b\n";
        let said = "checking file arch/x86/kvm/x86.c\nHunk #1 succeeded at 28 (offset 1 line).\n\
                    Hunk #2 FAILED at 4384.\n1 out of 2 hunks FAILED\n";
        let failed = failed_hunks(said);
        assert_eq!(failed, [("arch/x86/kvm/x86.c".to_owned(), 2)]);
        assert_eq!(
            functions(patch)["arch/x86/kvm/x86.c"],
            ["", "int kvm_vm_ioctl_check_extension(struct kvm *kvm)"]
        );
    }
}
