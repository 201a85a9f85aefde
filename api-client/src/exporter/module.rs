//! The KVM module of this host, as sysfs shows it to everybody.

use std::path::Path;

const MODULE: &str = "/sys/module/kvm";

/// What is known of the module.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// Its version, or the checksum of its sources where it has none.
    pub version: Option<String>,
    /// Whether it counts exits by reason now.
    pub counts: bool,
}

impl Module {
    /// Reads it anew: the module may be another since the last scrape.
    pub fn read() -> Self {
        Self::read_from(Path::new(MODULE))
    }

    fn read_from(folder: &Path) -> Self {
        let read = |name: &str| {
            let text = std::fs::read_to_string(folder.join(name)).ok()?;
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        Module {
            version: read("version").or_else(|| read("srcversion")),
            counts: read("parameters/exit_stats").as_deref() == Some("Y"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_without_the_parameter_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text);
        assert_eq!(Module::read_from(folder.path()), Module::default());
        write("srcversion", "ABC\n").unwrap();
        let stock = Module::read_from(folder.path());
        assert_eq!(
            (stock.version.as_deref(), stock.counts),
            (Some("ABC"), false)
        );
        std::fs::create_dir(folder.path().join("parameters")).unwrap();
        write("parameters/exit_stats", "Y\n").unwrap();
        write("version", "1.0+6.1\n").unwrap();
        let ours = Module::read_from(folder.path());
        assert_eq!(
            (ours.version.as_deref(), ours.counts),
            (Some("1.0+6.1"), true)
        );
        write("parameters/exit_stats", "N\n").unwrap();
        assert!(!Module::read_from(folder.path()).counts);
    }
}
