//! Which of the host's CPUs a thread runs on.

use std::io;

use rustix::thread::{CpuSet, sched_setaffinity};

/// Keeps the calling thread on these CPUs; on any, if none is named.
pub fn bind_to_cpus(cpus: &[usize]) -> io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for &cpu in cpus {
        if cpu >= CpuSet::MAX_CPU {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("there is no CPU {cpu}"),
            ));
        }
        set.set(cpu);
    }
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::thread::sched_getaffinity;

    use super::*;

    #[test]
    fn a_thread_stays_where_it_is_bound_and_others_go_on() {
        let own = sched_getaffinity(None).unwrap();
        let first = (0..CpuSet::MAX_CPU).find(|&cpu| own.is_set(cpu)).unwrap();
        let bound = thread::spawn(move || {
            bind_to_cpus(&[first]).unwrap();
            sched_getaffinity(None).unwrap()
        });
        let bound = bound.join().unwrap();
        assert!(bound.is_set(first) && bound.count() == 1);
        assert_eq!(sched_getaffinity(None).unwrap(), own);
    }

    #[test]
    fn no_cpu_means_any_and_a_missing_one_is_an_error() {
        assert!(bind_to_cpus(&[]).is_ok());
        assert!(bind_to_cpus(&[CpuSet::MAX_CPU]).is_err());
        assert!(bind_to_cpus(&[CpuSet::MAX_CPU - 1]).is_err());
    }
}
