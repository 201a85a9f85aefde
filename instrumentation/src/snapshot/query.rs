//! Narrowing a snapshot to what was asked for.

use super::ExitSnapshot;
use crate::table::{ExitReason, Isa, ReasonStatus};

/// What a reader wants of a snapshot. The default wants all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Only this reason. The totals stay those of all reasons.
    pub reason: Option<ExitReason>,
    /// Only this vCPU: totals and reasons become its own.
    pub vcpu: Option<u32>,
    /// Only the reasons that occurred.
    pub nonzero: bool,
}

/// Why a query has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryError {
    /// The manual does not define the reason.
    UndefinedReason {
        /// The reason that was asked for.
        reason: ExitReason,
        /// Whose manual.
        isa: Isa,
    },
    /// The VM has no such vCPU.
    NoSuchVcpu {
        /// The vCPU that was asked for.
        vcpu: u32,
        /// How many there are.
        vcpus: usize,
    },
}

impl std::fmt::Display for QueryError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            QueryError::UndefinedReason { reason, isa } => {
                let number = isa.number(reason.0);
                let manual = isa.table().manual;
                write!(
                    f,
                    "Exit reason {number} is undefined: the manual does not define it ({manual})"
                )
            }
            QueryError::NoSuchVcpu { vcpu, vcpus } => {
                write!(f, "There is no vCPU {vcpu}: the VM has {vcpus}")
            }
        }
    }
}

impl std::error::Error for QueryError {}

impl ExitSnapshot {
    /// The part of the snapshot that a query asks for.
    pub fn narrow(mut self, query: &Query) -> Result<ExitSnapshot, QueryError> {
        if let (Some(reason), Some(isa)) = (query.reason, self.isa)
            && isa.table().status(reason) == ReasonStatus::Undefined
        {
            return Err(QueryError::UndefinedReason { reason, isa });
        }
        if let Some(id) = query.vcpu {
            let vcpus = self.vcpus.len();
            self.vcpus.retain(|vcpu| vcpu.id == id);
            let Some(vcpu) = self.vcpus.first() else {
                return Err(QueryError::NoSuchVcpu { vcpu: id, vcpus });
            };
            self.totals = vcpu.totals;
            self.reasons = vcpu.reasons.clone();
            // It is of all vCPUs together.
            self.latency = None;
            if let Some(own) = &vcpu.vmm {
                self.vmm = own.clone();
            }
        }
        if let (Some(reason), Some(latency)) = (query.reason, &mut self.latency) {
            latency.narrow(reason.0);
        }
        let lists = self
            .vcpus
            .iter_mut()
            .map(|vcpu| &mut vcpu.reasons)
            .chain([&mut self.reasons]);
        for list in lists.flatten() {
            if let Some(reason) = query.reason {
                list.retain(|row| row.number == Some(reason.0));
            }
            if query.nonzero {
                list.retain(|row| !row.counters.is_zero());
            }
        }
        Ok(self)
    }
}
