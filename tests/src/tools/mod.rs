//! What operators see, held against the programs that operators use:
//! Prometheus, its `promtool`, a terminal, a browser; and the API against its
//! description, by schemathesis.
//!
//! No KVM host is needed for that. The API server is the real one on a real
//! socket; the figures behind it are made up and known. That figures are
//! right where a guest runs is what the suites prove.

mod api;
mod book;
mod browser;
mod endpoint;
mod exporter;
mod page;
mod prometheus;
mod screen;
mod shells;
mod terminal;

pub use endpoint::{Endpoint, Pace, Profile, build_release};

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Trial};

use crate::tree::Tree;

/// A trial: what it proves is its name.
type Check = fn(&Tree) -> Result<()>;

macro_rules! trials {
    ($module:ident: $($check:ident),+ $(,)?) => {
        [$((concat!(stringify!($module), "::", stringify!($check)), $module::$check as Check)),+]
    };
}

/// Metrics and the live view.
pub fn check(tree: &Tree) -> Result<()> {
    endpoint::build(tree)?;
    let mut trials = Vec::new();
    trials.extend(trials![prometheus:
        promtool_finds_nothing_to_blame_in_the_metrics,
        prometheus_parses_them_strictly_as_openmetrics,
        alert_rules_fire_when_they_should,
        prometheus_answers_with_the_exact_counts,
        dashboards_queries_answer_for_each_host,
        vms_come_go_and_hang_and_each_is_told,
    ]);
    trials.extend(trials![screen:
        screen_reads_as_it_should,
        keys_sort_filter_open_freeze_and_quit,
        no_color_means_no_colour,
        without_a_terminal_there_are_plain_lines,
    ]);
    trials.extend(trials![shells:
        bash_completes_commands_flags_and_values,
        zsh_completes_commands_flags_and_values,
        fish_completes_commands_flags_and_values,
    ]);
    trials.extend(trials![api:
        schemathesis_finds_no_violation,
        unmodified_client_of_cloud_hypervisor_is_served,
    ]);
    run(tree, &trials)
}

/// The report in a browser.
pub fn look(tree: &Tree) -> Result<()> {
    endpoint::build(tree)?;
    run(
        tree,
        &trials![page:
            report_loads_light_and_dark_narrow_and_wide,
            data_behind_each_plot_can_be_copied,
        ],
    )
}

/// The guide in a browser.
pub fn look_at_book(tree: &Tree) -> Result<()> {
    run(tree, &trials![book: every_page_shows_all_that_it_names])
}

fn run(tree: &Tree, trials: &[(&'static str, Check)]) -> Result<()> {
    let arguments = Arguments {
        // They share ports and a terminal server.
        test_threads: Some(1),
        ..Arguments::default()
    };
    let trials = trials
        .iter()
        .map(|&(name, check)| {
            let tree = tree.clone();
            Trial::test(name, move || {
                check(&tree).map_err(|error| format!("{error:#}").into())
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    ensure!(
        !conclusion.has_failed(),
        "{} trials failed",
        conclusion.num_failed
    );
    Ok(())
}
