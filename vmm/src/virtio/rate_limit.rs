//! Limits of bandwidth and operations: buckets of tokens that refill with
//! time. A bucket lets work pass while it holds any token and may then owe
//! some, so that the average is exact whatever the size of a request.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

/// A limiter that has run dry is looked at again after this at the earliest.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// A bucket, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketParams {
    /// Tokens when full.
    pub size: u64,
    /// Tokens granted once, on top.
    pub one_time_burst: u64,
    /// From empty to full.
    pub refill_time: Duration,
}

/// Limits of one device or of a group of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LimitParams {
    /// Bytes.
    pub bandwidth: Option<BucketParams>,
    /// Operations.
    pub operations: Option<BucketParams>,
}

struct Bucket {
    params: BucketParams,
    /// Below zero: owed.
    tokens: i128,
    burst: i128,
    filled: Instant,
}

impl Bucket {
    /// None if the bucket limits nothing.
    fn new(params: BucketParams, now: Instant) -> Option<Self> {
        if params.size == 0 || params.refill_time.is_zero() {
            return None;
        }
        Some(Self {
            params,
            tokens: i128::from(params.size),
            burst: i128::from(params.one_time_burst),
            filled: now,
        })
    }

    fn refill(&mut self, now: Instant) {
        let size = i128::from(self.params.size);
        let period = self.params.refill_time.as_nanos() as i128;
        let passed = now.saturating_duration_since(self.filled).as_nanos() as i128;
        let gained = passed.saturating_mul(size) / period;
        // Time that has not made a whole token yet counts next time.
        if gained > 0 {
            let nanos = (gained.saturating_mul(period) / size).clamp(0, passed);
            self.filled += Duration::from_nanos(nanos as u64);
            self.tokens = self.tokens.saturating_add(gained);
        }
        if self.tokens >= size {
            self.tokens = size;
            self.filled = now;
        }
    }

    /// How long until there is a token; none if there is one.
    fn wait(&self) -> Option<Duration> {
        if self.tokens > 0 || self.burst > 0 {
            return None;
        }
        let missing = 1 - self.tokens;
        let period = self.params.refill_time.as_nanos() as i128;
        let nanos = missing.saturating_mul(period) / i128::from(self.params.size) + 1;
        Some(Duration::from_nanos(
            u64::try_from(nanos).unwrap_or(u64::MAX),
        ))
    }

    fn charge(&mut self, tokens: u64) {
        let tokens = i128::from(tokens);
        let from_burst = tokens.min(self.burst);
        self.burst -= from_burst;
        self.tokens -= tokens - from_burst;
    }
}

/// Buckets that several limiters share.
#[derive(Clone)]
pub struct RateLimit(Arc<Mutex<Buckets>>);

struct Buckets {
    bandwidth: Option<Bucket>,
    operations: Option<Bucket>,
}

impl RateLimit {
    /// Full buckets.
    #[must_use]
    pub fn new(params: &LimitParams) -> Self {
        let now = Instant::now();
        let bucket = |params: Option<BucketParams>| params.and_then(|p| Bucket::new(p, now));
        Self(Arc::new(Mutex::new(Buckets {
            bandwidth: bucket(params.bandwidth),
            operations: bucket(params.operations),
        })))
    }

    /// How long until work may pass; none if it may now.
    fn wait(&self, now: Instant) -> Option<Duration> {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Buckets {
            bandwidth,
            operations,
        } = &mut *buckets;
        [bandwidth, operations]
            .into_iter()
            .flatten()
            .filter_map(|bucket| {
                bucket.refill(now);
                bucket.wait()
            })
            .max()
    }

    fn charge(&self, bytes: u64) {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = &mut buckets.bandwidth {
            bucket.charge(bytes);
        }
        if let Some(bucket) = &mut buckets.operations {
            bucket.charge(1);
        }
    }
}

/// One user of a limit. Belongs to a thread, which waits for it to become
/// readable when nothing may pass.
pub struct RateLimiter {
    limit: RateLimit,
    timer: TimerFd,
    waiting: bool,
}

impl RateLimiter {
    /// A user of `limit`.
    pub fn new(limit: RateLimit) -> io::Result<Self> {
        Ok(Self {
            limit,
            timer: TimerFd::new()?,
            waiting: false,
        })
    }

    /// Whether an operation may be done now. If not, the limiter becomes
    /// readable when it may.
    pub fn may_pass(&mut self) -> bool {
        if self.waiting {
            return false;
        }
        let Some(wait) = self.limit.wait(Instant::now()) else {
            return true;
        };
        match self.timer.reset(wait.max(SHORTEST_WAIT), None) {
            Ok(()) => {
                self.waiting = true;
                false
            }
            // Better too fast than never again.
            Err(error) => {
                log::warn!("a rate limit fails: {error}");
                true
            }
        }
    }

    /// An operation with so many bytes was done.
    pub fn charge(&self, bytes: u64) {
        self.limit.charge(bytes);
    }

    /// To be called when the limiter is readable.
    pub fn resume(&mut self) {
        if self.waiting {
            self.waiting = false;
            // Readable, so it does not block.
            let _ = self.timer.wait();
        }
    }
}

impl AsRawFd for RateLimiter {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket(size: u64, burst: u64, millis: u64, now: Instant) -> Bucket {
        let params = BucketParams {
            size,
            one_time_burst: burst,
            refill_time: Duration::from_millis(millis),
        };
        Bucket::new(params, now).unwrap()
    }

    #[test]
    fn a_burst_is_granted_once_and_before_the_rest() {
        let start = Instant::now();
        let mut bucket = bucket(10, 5, 1000, start);
        bucket.charge(14);
        assert_eq!(bucket.wait(), None);
        bucket.charge(1);
        assert!(bucket.wait().is_some());
        bucket.refill(start + Duration::from_secs(100));
        bucket.charge(10);
        assert!(bucket.wait().is_some());
    }

    #[test]
    fn a_request_larger_than_the_bucket_passes_and_is_paid_for_later() {
        let start = Instant::now();
        let mut bucket = bucket(10, 0, 1000, start);
        bucket.charge(30);
        assert_eq!(bucket.wait().unwrap().as_millis(), 2100);
        bucket.refill(start + Duration::from_millis(2000));
        assert!(bucket.wait().is_some());
        bucket.refill(start + Duration::from_millis(2101));
        assert_eq!(bucket.wait(), None);
    }

    #[test]
    fn empty_buckets_limit_nothing() {
        for (size, millis) in [(0, 1), (1, 0)] {
            let params = BucketParams {
                size,
                one_time_burst: 0,
                refill_time: Duration::from_millis(millis),
            };
            assert!(Bucket::new(params, Instant::now()).is_none());
        }
    }

    #[test]
    fn a_limiter_that_ran_dry_becomes_readable_and_passes_again() {
        let params = LimitParams {
            bandwidth: None,
            operations: Some(BucketParams {
                size: 1,
                one_time_burst: 0,
                refill_time: Duration::from_millis(20),
            }),
        };
        let limit = RateLimit::new(&params);
        let mut first = RateLimiter::new(limit.clone()).unwrap();
        let mut second = RateLimiter::new(limit).unwrap();
        assert!(first.may_pass());
        first.charge(1 << 40);
        assert!(!second.may_pass());
        second.timer.wait().unwrap();
        assert!(!second.may_pass());
        second.waiting = false;
        assert!(second.may_pass());
    }

    proptest! {
        #[test]
        fn no_more_passes_than_the_limit_allows(
            size in 1u64..10_000,
            millis in 1u64..5_000,
            steps in prop::collection::vec((0u64..3_000_000, 1u64..5_000), 1..200),
        ) {
            let start = Instant::now();
            let mut bucket = bucket(size, 0, millis, start);
            let (mut now, mut passed) = (start, 0u64);
            for (micros, tokens) in steps {
                now += Duration::from_micros(micros);
                bucket.refill(now);
                if bucket.wait().is_none() {
                    bucket.charge(tokens);
                    passed += tokens;
                    let earned = now.duration_since(start).as_nanos() * u128::from(size)
                        / u128::from(millis * 1_000_000);
                    prop_assert!(u128::from(passed) <= u128::from(size) + earned + u128::from(tokens));
                }
            }
        }
    }
}
