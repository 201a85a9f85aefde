//! Descriptors that a client sends along with a request, `SCM_RIGHTS` on the
//! socket. A number in a request's body means nothing in this process: it only
//! says how many of the descriptors that came are whose.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use api_client::config::{NetConfig, RestoredNetConfig};

/// How many descriptors clients may have in this process, all together: the
/// process has no more of them than its limit allows, and needs some itself.
/// Clones count the same ones.
#[derive(Clone, Debug)]
pub struct Budget {
    left: Arc<AtomicUsize>,
}

impl Budget {
    /// So many.
    pub fn new(count: usize) -> Self {
        Self {
            left: Arc::new(AtomicUsize::new(count)),
        }
    }
}

/// Descriptors that came so far, counted until they are closed.
#[derive(Debug)]
pub struct Received {
    descriptors: Vec<OwnedFd>,
    budget: Budget,
}

/// There is no room for more descriptors.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Clients have sent too many descriptors")]
pub struct BudgetError;

impl Received {
    /// None yet.
    pub fn new(budget: Budget) -> Self {
        Self {
            descriptors: Vec::new(),
            budget,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.descriptors.len()
    }

    /// Adds descriptors. Where the budget has no room they are closed.
    pub fn add(&mut self, descriptors: Vec<OwnedFd>) -> Result<(), BudgetError> {
        let count = descriptors.len();
        self.budget
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(count)
            })
            .map_err(|_| BudgetError)?;
        self.descriptors.extend(descriptors);
        Ok(())
    }

    /// Takes all, and begins anew.
    pub fn take(&mut self) -> Descriptors {
        if self.descriptors.is_empty() {
            return Descriptors::default();
        }
        let next = Self::new(self.budget.clone());
        Descriptors(Some(Arc::new(std::mem::replace(self, next))))
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let count = self.descriptors.len();
        self.descriptors.clear();
        self.budget.left.fetch_add(count, Ordering::Relaxed);
    }
}

/// The descriptors of a request, in the order in which they came. They are
/// closed with the last clone.
#[derive(Clone, Debug, Default)]
pub struct Descriptors(Option<Arc<Received>>);

/// Descriptors and a request's body do not fit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Network devices name {named} descriptors, and {received} came with the request")]
pub struct AssignError {
    named: usize,
    received: usize,
}

impl Descriptors {
    /// Whether none came.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Their numbers in this process.
    #[must_use]
    pub fn raw_fds(&self) -> Vec<RawFd> {
        let received = self.0.iter().flat_map(|received| &received.descriptors);
        received.map(AsRawFd::as_raw_fd).collect()
    }

    /// Gives them to network devices, as many to each as it names; all that
    /// came to a single one that names none. None may be left over.
    pub(super) fn assign_to(&self, nets: &mut [NetConfig]) -> Result<(), AssignError> {
        let received = self.raw_fds();
        if let [
            NetConfig {
                fds: fds @ None, ..
            },
        ] = nets
        {
            *fds = Some(received).filter(|received| !received.is_empty());
            return Ok(());
        }
        let named = nets.iter().flat_map(|net| &net.fds).flatten().count();
        if named != received.len() {
            return Err(AssignError {
                named,
                received: received.len(),
            });
        }
        let mut received = received.into_iter();
        for number in nets.iter_mut().flat_map(|net| &mut net.fds).flatten() {
            *number = received.next().unwrap_or(*number);
        }
        Ok(())
    }

    /// Gives them to network devices that are restored, as many to each as it
    /// says. None may be left over.
    pub(super) fn assign_to_restored(
        &self,
        nets: &mut [RestoredNetConfig],
    ) -> Result<(), AssignError> {
        let received = self.raw_fds();
        let counts = nets.iter().map(RestoredNetConfig::count);
        let named = counts.fold(0, usize::saturating_add);
        if named != received.len() {
            return Err(AssignError {
                named,
                received: received.len(),
            });
        }
        let mut received = received.into_iter();
        for net in nets {
            net.fds = Some(received.by_ref().take(net.count()).collect());
        }
        Ok(())
    }
}

impl PartialEq for Descriptors {
    fn eq(&self, other: &Self) -> bool {
        self.raw_fds() == other.raw_fds()
    }
}

impl Eq for Descriptors {}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(fds: Option<Vec<RawFd>>) -> NetConfig {
        NetConfig {
            fds,
            ..NetConfig::default()
        }
    }

    fn descriptors(count: usize) -> Descriptors {
        let open = || std::fs::File::open("/dev/null").unwrap().into();
        let mut received = Received::new(Budget::new(count));
        received.add((0..count).map(|_| open()).collect()).unwrap();
        received.take()
    }

    #[test]
    fn each_device_gets_as_many_as_it_names() {
        let received = descriptors(3);
        let numbers = received.raw_fds();
        let mut nets = [net(Some(vec![3])), net(None), net(Some(vec![7, 8]))];
        received.assign_to(&mut nets).unwrap();
        assert_eq!(nets[0].fds, Some(numbers[..1].to_vec()));
        assert_eq!(nets[1].fds, None);
        assert_eq!(nets[2].fds, Some(numbers[1..].to_vec()));
    }

    #[test]
    fn a_single_device_that_names_none_gets_all() {
        let received = descriptors(2);
        let mut nets = [net(None)];
        received.assign_to(&mut nets).unwrap();
        assert_eq!(nets[0].fds, Some(received.raw_fds()));
        descriptors(0).assign_to(&mut [net(None)]).unwrap();
    }

    #[test]
    fn restored_devices_get_as_many_as_they_say() {
        let restored = |id: &str, num_fds, fds| RestoredNetConfig {
            id: id.into(),
            num_fds,
            fds,
        };
        let received = descriptors(3);
        let numbers = received.raw_fds();
        let mut nets = [restored("a", 1, None), restored("b", 9, Some(vec![0, 0]))];
        received.assign_to_restored(&mut nets).unwrap();
        assert_eq!(nets[0].fds, Some(numbers[..1].to_vec()));
        assert_eq!(nets[1].fds, Some(numbers[1..].to_vec()));
        let error = received.assign_to_restored(&mut [restored("a", usize::MAX, None)]);
        assert_eq!(
            error,
            Err(AssignError {
                named: usize::MAX,
                received: 3,
            })
        );
    }

    #[test]
    fn a_budget_is_shared_and_comes_back() {
        let open = |count| -> Vec<OwnedFd> {
            let open = |_| std::fs::File::open("/dev/null").unwrap().into();
            (0..count).map(open).collect()
        };
        let budget = Budget::new(3);
        let mut first = Received::new(budget.clone());
        let mut second = Received::new(budget);
        assert_eq!(first.add(open(2)), Ok(()));
        assert_eq!(second.add(open(2)), Err(BudgetError));
        assert_eq!((second.len(), second.add(Vec::new())), (0, Ok(())));
        let taken = first.take();
        let clone = taken.clone();
        drop(taken);
        assert_eq!(second.add(open(2)), Err(BudgetError));
        drop(clone);
        assert_eq!(second.add(open(3)), Ok(()));
        assert_eq!(first.add(open(1)), Err(BudgetError));
    }

    #[test]
    fn other_numbers_than_received_are_refused() {
        for (count, named) in [(0, vec![3]), (1, vec![3, 4]), (2, vec![3])] {
            let received = descriptors(count);
            let text = received
                .assign_to(&mut [net(Some(named.clone()))])
                .unwrap_err();
            let expected = AssignError {
                named: named.len(),
                received: count,
            };
            assert_eq!(text, expected);
        }
        assert!(descriptors(1).assign_to(&mut []).is_err());
        assert!(
            descriptors(1)
                .assign_to(&mut [net(None), net(None)])
                .is_err()
        );
    }
}
