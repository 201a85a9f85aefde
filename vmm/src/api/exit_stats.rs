//! The exit statistics as a resource: parameters in, snapshot out.

use std::sync::Arc;

use instrumentation::encode;
use instrumentation::snapshot::Query;
use instrumentation::table::ExitReason;

use super::http::{ContentType, Response};
use super::parameter::{ParameterError, parameters};
use crate::stats::{StatsError, StatsHub};

/// Understands `reason=N`, `vcpu=N` and `nonzero=true`, each at most once.
///
/// # Errors
/// Another parameter, or a value that it cannot have.
pub fn parse_query(text: &str) -> Result<Query, ParameterError> {
    let mut query = Query::default();
    for (name, value) in parameters(text)? {
        match name {
            "reason" => query.reason = Some(ExitReason(parse_number(name, value)?)),
            "vcpu" => query.vcpu = Some(parse_number(name, value)?),
            "nonzero" => {
                query.nonzero = match value {
                    "true" => true,
                    "false" => false,
                    _ => {
                        return Err(ParameterError::Flag {
                            name: name.to_owned(),
                            value: value.to_owned(),
                        });
                    }
                }
            }
            _ => {
                return Err(ParameterError::Unknown {
                    name: name.to_owned(),
                    valid: "reason, vcpu, nonzero",
                });
            }
        }
    }
    Ok(query)
}

/// An unsigned number of at most 32 bits, decimal or after `0x`.
fn parse_number(name: &str, text: &str) -> Result<u32, ParameterError> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    // The standard library would take a sign.
    let is_number = !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix));
    is_number
        .then(|| u32::from_str_radix(digits, radix).ok())
        .flatten()
        .ok_or_else(|| ParameterError::Number {
            name: name.to_owned(),
            value: text.to_owned(),
        })
}

/// Memory of answers that all clients have taken, for further ones: a whole
/// snapshot's is large, and to have it from the kernel anew takes as long as to
/// fill it.
#[derive(Debug, Default)]
pub struct BufferPool(Vec<Arc<Vec<u8>>>);

/// Answers whose memory is kept.
const POOL_LEN: usize = 4;
/// The largest answer whose memory is kept.
const LARGEST_KEPT: usize = 1 << 20;

impl BufferPool {
    fn take(&mut self) -> Vec<u8> {
        let free = self.0.iter().position(|body| Arc::strong_count(body) == 1);
        free.and_then(|place| Arc::into_inner(self.0.swap_remove(place)))
            .unwrap_or_default()
    }

    fn keep(&mut self, response: &Response) {
        if let Some((_, body)) = &response.body
            && self.0.len() < POOL_LEN
            && body.capacity() <= LARGEST_KEPT
        {
            self.0.push(Arc::clone(body));
        }
    }
}

/// Answers with a snapshot.
pub fn snapshot(hub: &StatsHub, query: &Query, pool: &mut BufferPool) -> Response {
    match hub.snapshot(query) {
        Ok(snapshot) => {
            let mut body = pool.take();
            encode::json_into(&mut body, &snapshot);
            let response = Response::text(ContentType::Json, body);
            pool.keep(&response);
            response
        }
        Err(error) => refuse(&error),
    }
}

/// Answers with a snapshot in OpenMetrics. Without a machine there are no
/// statistics, which is no error to a scraper.
pub fn metrics(hub: &StatsHub, vm: &str) -> Response {
    let snapshot = match hub.snapshot(&Query::default()) {
        Ok(snapshot) => Some(snapshot),
        Err(StatsError::NotBooted) => None,
        Err(error) => return refuse(&error),
    };
    let vms: Vec<_> = snapshot.iter().map(|snapshot| (vm, snapshot)).collect();
    Response::text(
        ContentType::OpenMetrics,
        encode::openmetrics(&vms).into_bytes(),
    )
}

fn refuse(error: &StatsError) -> Response {
    let status = match error {
        StatsError::NotBooted | StatsError::Query(_) => 404,
        StatsError::Sample { .. } => 500,
    };
    let chain = std::iter::once("The exit statistics are not available".to_owned())
        .chain(crate::api::request::chain_of(error));
    Response::error(status, chain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_understood() {
        assert_eq!(parse_query("").unwrap(), Query::default());
        assert_eq!(
            parse_query("reason=0x30&vcpu=1&nonzero=true").unwrap(),
            Query {
                reason: Some(ExitReason(48)),
                vcpu: Some(1),
                nonzero: true
            }
        );
        assert_eq!(
            parse_query("reason=4294967295").unwrap().reason,
            Some(ExitReason(u32::MAX))
        );
    }

    #[test]
    fn what_is_no_32_bit_number_is_refused() {
        for value in [
            "",
            "-1",
            "+1",
            "abc",
            "1.0",
            "4294967296",
            "0x100000000",
            "0x",
            "0x-1",
            " 1",
            "1%20",
            "٣",
            "EPT_VIOLATION",
        ] {
            assert!(parse_query(&format!("reason={value}")).is_err(), "{value}");
            assert!(parse_query(&format!("vcpu={value}")).is_err(), "{value}");
        }
    }

    #[test]
    fn unknown_incomplete_and_repeated_parameters_are_refused() {
        for text in ["reasons=1", "reason", "nonzero=1", "vcpu=1&vcpu=1", "=1"] {
            assert!(parse_query(text).is_err(), "{text}");
        }
    }

    #[test]
    fn memory_is_used_again_once_nobody_reads_it() {
        let hub = StatsHub::new();
        hub.publish(crate::stats::tests::machine(
            1,
            crate::stats::tests::PATCHED,
        ));
        let mut pool = BufferPool::default();
        let mut ask = || snapshot(&hub, &Query::default(), &mut pool);
        let place = |response: &Response| response.body.as_ref().map(|(_, body)| body.as_ptr());
        let first = ask();
        let second = ask();
        assert_ne!(place(&first), place(&second));
        let (place_of_first, text) = (place(&first), first.body.clone().unwrap().1.to_vec());
        drop(first);
        let third = ask();
        assert_eq!(place(&third), place_of_first);
        assert_ne!(third.body.unwrap().1.to_vec(), text);
    }

    proptest::proptest! {
        #[test]
        fn no_query_makes_the_parser_panic(text in "\\PC*") {
            let _ = parse_query(&text);
        }
    }
}
