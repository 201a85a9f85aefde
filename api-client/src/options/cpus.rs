//! `--cpus`

use std::str::FromStr;

use super::{OptionError, Options};
use crate::config::{
    CoreScheduling, CpuAffinity, CpuFeatures, CpuProfile, CpuTopology, CpusConfig,
};

const KEYS: [&str; 10] = [
    "boot",
    "max",
    "topology",
    "kvm_hyperv",
    "max_phys_bits",
    "affinity",
    "features",
    "nested",
    "core_scheduling",
    "profile",
];

impl FromStr for CpusConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let options = Options::parse(text, &KEYS, &[])?;
        let default = CpusConfig::default();
        let boot_vcpus = options.number("boot")?.unwrap_or(default.boot_vcpus);
        let affinity = options.number_lists("affinity")?.map(|map| {
            map.into_iter()
                .map(|(vcpu, host_cpus)| CpuAffinity { vcpu, host_cpus })
                .collect()
        });
        let mut features = CpuFeatures::default();
        for feature in options.texts("features")?.unwrap_or_default() {
            match feature.as_str() {
                "amx" => features.amx = true,
                _ => {
                    return Err(OptionError::Value {
                        key: "features".into(),
                        value: feature,
                        expected: "amx".into(),
                    });
                }
            }
        }
        Ok(CpusConfig {
            boot_vcpus,
            max_vcpus: options.number("max")?.unwrap_or(boot_vcpus),
            topology: options.parsed("topology", TOPOLOGY_FORM)?,
            kvm_hyperv: options.toggle("kvm_hyperv")?.unwrap_or(default.kvm_hyperv),
            max_phys_bits: options
                .number("max_phys_bits")?
                .unwrap_or(default.max_phys_bits),
            affinity,
            features,
            nested: options.toggle("nested")?.unwrap_or(default.nested),
            core_scheduling: options
                .choice(
                    "core_scheduling",
                    &[
                        ("vm", CoreScheduling::Vm),
                        ("vcpu", CoreScheduling::Vcpu),
                        ("off", CoreScheduling::Off),
                    ],
                )?
                .unwrap_or_default(),
            profile: options
                .choice("profile", &[("host", CpuProfile::Host)])?
                .unwrap_or_default(),
        })
    }
}

const TOPOLOGY_FORM: &str = "threads per core, cores per die, dies per package and packages as \
                             four numbers with colons between";

impl FromStr for CpuTopology {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let parts: Option<Vec<u16>> = text.split(':').map(|part| part.parse().ok()).collect();
        match parts.as_deref() {
            Some(&[threads_per_core, cores_per_die, dies_per_package, packages]) => {
                Ok(CpuTopology {
                    threads_per_core,
                    cores_per_die,
                    dies_per_package,
                    packages,
                })
            }
            _ => Err(OptionError::Value {
                key: "topology".into(),
                value: text.to_owned(),
                expected: TOPOLOGY_FORM.into(),
            }),
        }
    }
}
