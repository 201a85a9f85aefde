//! Descriptors that a client sends along with a request, `SCM_RIGHTS` on the
//! socket. A number in a request's body means nothing in this process: it only
//! says how many of the descriptors that came are whose.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use api_client::config::NetConfig;

/// Descriptors in the order in which they came. They are closed with the last
/// clone.
#[derive(Clone, Debug, Default)]
pub struct Descriptors(Arc<Vec<OwnedFd>>);

impl Descriptors {
    /// Takes hold of descriptors.
    pub(super) fn new(descriptors: Vec<OwnedFd>) -> Self {
        Self(Arc::new(descriptors))
    }

    /// Whether none came.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their numbers in this process.
    #[must_use]
    pub fn numbers(&self) -> Vec<RawFd> {
        self.0.iter().map(AsRawFd::as_raw_fd).collect()
    }

    /// Gives them to network devices, as many to each as it names; all that
    /// came to a single one that names none. None may be left over.
    pub(super) fn give_to(&self, nets: &mut [NetConfig]) -> Result<(), String> {
        let came = self.numbers();
        if let [
            NetConfig {
                fds: fds @ None, ..
            },
        ] = nets
        {
            *fds = Some(came).filter(|came| !came.is_empty());
            return Ok(());
        }
        let named = nets.iter().flat_map(|net| &net.fds).flatten().count();
        if named != came.len() {
            return Err(format!(
                "Network devices name {named} descriptors, and {} came with the request",
                came.len()
            ));
        }
        let mut came = came.into_iter();
        for number in nets.iter_mut().flat_map(|net| &mut net.fds).flatten() {
            *number = came.next().unwrap_or(*number);
        }
        Ok(())
    }
}

impl PartialEq for Descriptors {
    fn eq(&self, other: &Self) -> bool {
        self.numbers() == other.numbers()
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
        Descriptors::new((0..count).map(|_| open()).collect())
    }

    #[test]
    fn each_device_gets_as_many_as_it_names() {
        let came = descriptors(3);
        let numbers = came.numbers();
        let mut nets = [net(Some(vec![3])), net(None), net(Some(vec![7, 8]))];
        came.give_to(&mut nets).unwrap();
        assert_eq!(nets[0].fds, Some(numbers[..1].to_vec()));
        assert_eq!(nets[1].fds, None);
        assert_eq!(nets[2].fds, Some(numbers[1..].to_vec()));
    }

    #[test]
    fn a_single_device_that_names_none_gets_all() {
        let came = descriptors(2);
        let mut nets = [net(None)];
        came.give_to(&mut nets).unwrap();
        assert_eq!(nets[0].fds, Some(came.numbers()));
        descriptors(0).give_to(&mut [net(None)]).unwrap();
    }

    #[test]
    fn other_numbers_than_came_are_refused() {
        for (count, named) in [(0, vec![3]), (1, vec![3, 4]), (2, vec![3])] {
            let came = descriptors(count);
            let text = came.give_to(&mut [net(Some(named.clone()))]).unwrap_err();
            let expected = format!("name {} descriptors, and {count} came with", named.len());
            assert!(text.contains(&expected), "{text}");
        }
        assert!(descriptors(1).give_to(&mut []).is_err());
        assert!(descriptors(1).give_to(&mut [net(None), net(None)]).is_err());
    }
}
