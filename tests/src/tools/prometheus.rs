//! Metrics, as Prometheus and its own checker take them.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::endpoint::{Endpoint, Pace, Profile, wait_until};
use super::exporter::{Exporter, free_address};
use crate::artifact::packages;
use crate::command::{bound_command, command, fed, output, text};
use crate::host::Isa;
use crate::tree::Tree;
use crate::vmm::request;

/// One machine of each kind, standing still. The name of one has all that a
/// label has to escape.
fn machines(tree: &Tree, name: &str) -> Result<(PathBuf, Vec<Endpoint>)> {
    let folder = tree.fresh_log_dir(name)?;
    let machines = [("intel", Isa::Vmx, 2), ("a\"m\\d\n", Isa::Svm, 3)]
        .into_iter()
        .map(|(name, isa, vcpus)| {
            let socket = folder.join(format!("{name}.sock"));
            Endpoint::start(tree, Profile::Debug, &socket, isa, vcpus, Pace::Still)
        })
        .collect::<Result<_>>()?;
    Ok((folder, machines))
}

/// `/metrics` of one VMM, and what the exporter makes of all.
fn both(tree: &Tree, name: &str) -> Result<[(&'static str, String); 2]> {
    let (folder, machines) = machines(tree, name)?;
    let own = request(machines[0].socket(), "GET", "/metrics", None)?;
    ensure!(own.status == 200, "GET /metrics gave {}", own.status);
    ensure!(
        own.header("content-type")
            .is_some_and(|value| value.starts_with("application/openmetrics-text")),
        "{:?}",
        own.headers
    );
    let exporter = Exporter::start(tree, &folder)?;
    Ok([("VMM", own.body), ("exporter", exporter.scrape()?)])
}

pub fn promtool_finds_nothing_to_blame_in_the_metrics(tree: &Tree) -> Result<()> {
    for (whose, metrics) in both(tree, "tools-lint")? {
        let said = fed(
            promtool(tree)?.args(["check", "metrics"]),
            &in_the_older_form(&metrics),
        )?;
        ensure!(said.trim().is_empty(), "{whose}: promtool says\n{said}");
        ensure!(metrics.lines().count() > 100, "{whose}: hardly any metrics");
    }
    Ok(())
}

/// `promtool check metrics` reads the form that Prometheus had before
/// OpenMetrics. There a counter's description bears the name of its series,
/// and there are no units and no end.
fn in_the_older_form(metrics: &str) -> String {
    let mut counters = Vec::new();
    for line in metrics.lines() {
        if let Some(name) = line
            .strip_prefix("# TYPE ")
            .and_then(|line| line.strip_suffix(" counter"))
        {
            counters.push(name);
        }
    }
    let mut older = String::new();
    for line in metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("UNIT" | "EOF"), ..) => {}
            (Some("#"), Some(what), Some(name), Some(rest)) if counters.contains(&name) => {
                older.push_str(&format!("# {what} {name}_total {rest}\n"));
            }
            _ => older.push_str(&format!("{line}\n")),
        }
    }
    older
}

pub fn prometheus_parses_them_strictly_as_openmetrics(tree: &Tree) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    for (whose, metrics) in both(tree, "tools-openmetrics")? {
        let dir = tree.fresh_log_dir("tools-openmetrics-blocks")?;
        let parse = |name: &str, metrics: &str| {
            let file = dir.join(name);
            fs::write(&file, metrics)?;
            output(
                promtool(tree)?
                    .args(["tsdb", "create-blocks-from", "openmetrics"])
                    .arg(&file)
                    .arg(dir.join(format!("{name}.blocks"))),
            )
        };
        // It wants to know when; that is all that is added.
        let stamped: String = metrics
            .lines()
            .map(|line| match line.starts_with('#') {
                true => format!("{line}\n"),
                false => format!("{line} {now}\n"),
            })
            .collect();
        parse("good", &stamped).with_context(|| whose.to_owned())?;
        let broken = stamped.replace("# EOF\n", "");
        ensure!(
            parse("broken", &broken).is_err(),
            "promtool takes anything for OpenMetrics"
        );
    }
    Ok(())
}

pub fn alert_rules_fire_when_they_should(tree: &Tree) -> Result<()> {
    let docs = tree.root().join("docs/metrics");
    output(
        promtool(tree)?
            .args(["check", "rules", "alerts.yml"])
            .current_dir(&docs),
    )?;
    output(
        promtool(tree)?
            .args(["test", "rules", "alerts.test.yml"])
            .current_dir(&docs),
    )?;
    Ok(())
}

pub fn prometheus_answers_with_the_exact_counts(tree: &Tree) -> Result<()> {
    let (folder, machines) = machines(tree, "tools-scrape")?;
    let exporter = Exporter::start(tree, &folder)?;
    let prometheus = Prometheus::start(tree, &[&exporter], &folder)?;
    for machine in &machines {
        // As PromQL quotes it.
        let vm = machine.socket().display().to_string();
        let vm = vm
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n");
        let body = request(machine.socket(), "GET", "/exit-stats", None)?.json()?;
        for symbol in ["CPUID", "HLT"] {
            let rows = body["reasons"].as_array().context("There are no reasons")?;
            let row = rows.iter().find(|row| row["symbol"] == symbol);
            let exits = row.and_then(|row| row["exits"].as_f64());
            let exits = exits.with_context(|| format!("{symbol} is missing"))?;
            let query = format!("sum(kvm_exits_total{{vm=\"{vm}\",reason=\"{symbol}\"}})");
            let found = prometheus.wait_for(&query)?;
            ensure!(
                found == exits && exits > 1e6,
                "{query}: {found}, where REST says {exits}"
            );
        }
        let total = prometheus.wait_for(&format!("sum(kvm_vm_exits_total{{vm=\"{vm}\"}})"))?;
        ensure!(
            Some(total) == body["totals"]["exits"].as_f64(),
            "The total of {vm} is {total}, where REST says {}",
            body["totals"]
        );
    }
    Ok(())
}

/// Two hosts, each with a VM of the same name: no answer is of both together.
pub fn dashboards_queries_answer_for_each_host(tree: &Tree) -> Result<()> {
    let folder = tree.fresh_log_dir("tools-dashboard")?;
    let mut hosts = Vec::new();
    for (name, vcpus) in [("one", 1), ("two", 3)] {
        let host = folder.join(name);
        fs::create_dir_all(&host)?;
        let socket = host.join("vm.sock");
        let vm = Endpoint::start(tree, Profile::Debug, &socket, Isa::Vmx, vcpus, Pace::Moving)?;
        hosts.push((vm, Exporter::start_in(tree, &host, "vm.sock")?));
    }
    let exporters: Vec<&Exporter> = hosts.iter().map(|(_, exporter)| exporter).collect();
    let prometheus = Prometheus::start(tree, &exporters, &folder)?;
    let dashboard = fs::read_to_string(tree.root().join("docs/metrics/dashboard.json"))?;
    let dashboard: Value = serde_json::from_str(&dashboard).context("dashboard.json")?;
    let mut queries = Vec::new();
    expressions(&dashboard, &mut queries);
    ensure!(queries.len() > 3, "The dashboard asks little: {queries:?}");
    prometheus.wait_for("count(count_over_time(kvm_exit_stats_up[1m]) > 3) == 2")?;
    for (number, exporter) in exporters.iter().enumerate() {
        let address = exporter.address();
        let vcpus = format!("kvm_exit_stats_vcpus{{instance=\"{address}\",vm=\"vm.sock\"}}");
        let found = prometheus.wait_for(&vcpus)?;
        ensure!(found == [1.0, 3.0][number], "{vcpus}: {found}");
    }
    for query in queries {
        // What Grafana puts in for its variables.
        let query = query
            .replace("$__rate_interval", "10s")
            // All, so that one host does not take the places of the other.
            .replace("topk(5,", "topk(1000,")
            .replace("topk(10,", "topk(1000,")
            .replace("$instance", ".*")
            .replace("$vm", ".*")
            .replace("${vm:regex}", ".*");
        prometheus
            .wait_for(&format!("count(count by (instance) ({query})) == 2"))
            .with_context(|| format!("The dashboard's query {query}"))?;
    }
    Ok(())
}

fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(text) if key == "expr" => found.push(text.clone()),
                    _ => expressions(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        _ => {}
    }
}

pub fn vms_come_go_and_hang_and_each_is_told(tree: &Tree) -> Result<()> {
    let folder = tree.fresh_log_dir("tools-come-and-go")?;
    let start = |name: &str| {
        let socket = folder.join(name);
        Endpoint::start(tree, Profile::Debug, &socket, Isa::Vmx, 1, Pace::Still)
    };
    let _stays = start("stays.sock")?;
    let exporter = Exporter::start(tree, &folder)?;
    let prometheus = Prometheus::start(tree, &[&exporter], &folder)?;
    let up = |name: &str| {
        let vm = folder.join(name).display().to_string();
        format!("kvm_exit_stats_up{{vm=\"{vm}\"}}")
    };
    prometheus.wait_for(&format!("{} == 1", up("stays.sock")))?;

    let comes = start("comes.sock")?;
    prometheus.wait_for(&format!("{} == 1", up("comes.sock")))?;
    drop(comes);
    prometheus.wait_for(&format!("absent({})", up("comes.sock")))?;

    // It takes connections, as the kernel does for it, and says nothing.
    let _hung = UnixListener::bind(folder.join("hung.sock"))?;
    prometheus.wait_for(&format!("{} == 0", up("hung.sock")))?;
    prometheus.wait_for(&format!("{} == 1", up("stays.sock")))?;
    let begun = Instant::now();
    exporter.scrape()?;
    ensure!(
        begun.elapsed() < Duration::from_secs(5),
        "One that hangs held the scrape up for {:?}",
        begun.elapsed()
    );
    Ok(())
}

/// One of the programs in Debian's package.
fn program(tree: &Tree, name: &str) -> Result<PathBuf> {
    Ok(packages::unpacked(tree, "prometheus")?
        .join("usr/bin")
        .join(name))
}

fn promtool(tree: &Tree) -> Result<Command> {
    Ok(Command::new(program(tree, "promtool")?))
}

/// Debian's Prometheus; ends with the value.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    promtool: PathBuf,
}

impl Prometheus {
    fn start(tree: &Tree, exporters: &[&Exporter], folder: &Path) -> Result<Self> {
        let targets: Vec<String> = exporters
            .iter()
            .map(|exporter| exporter.address().to_string())
            .collect();
        let address = free_address()?;
        let config = folder.join("prometheus.yml");
        let alerts = tree.root().join("docs/metrics/alerts.yml");
        fs::write(
            &config,
            format!(
                "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
                 rule_files: [{}]\n\
                 scrape_configs:\n  - job_name: vm-exits\n    static_configs:\n      \
                 - targets: {targets:?}\n",
                alerts.display(),
            ),
        )?;
        let log = fs::File::create(folder.join("prometheus.log"))?;
        let child = bound_command(
            &program(tree, "prometheus")?.to_string_lossy(),
            Vec::<String>::new(),
        )
        .arg(format!("--config.file={}", config.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            folder.join("tsdb").display()
        ))
        .arg(format!("--web.listen-address={address}"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("Cannot start prometheus")?;
        let prometheus = Prometheus {
            child,
            address,
            promtool: program(tree, "promtool")?,
        };
        wait_until("Prometheus answers", || {
            prometheus.query("vector(1)").is_ok()
        })?;
        Ok(prometheus)
    }

    /// The value of the first series, if there is one.
    fn query(&self, query: &str) -> Result<Option<f64>> {
        let server = format!("http://{}", self.address);
        let query = ["query", "instant", "--format=json", &server, query];
        let shown = text(&mut command(&self.promtool.to_string_lossy(), query))?;
        let body: Value = serde_json::from_str(&shown).context("promtool printed no JSON")?;
        let value = &body[0]["value"][1];
        value
            .as_str()
            .map(|value| value.parse().context("The value is no number"))
            .transpose()
    }

    /// Waits until a query has an answer.
    fn wait_for(&self, query: &str) -> Result<f64> {
        let mut answer = None;
        wait_until(&format!("Prometheus has an answer to {query}"), || {
            answer = self.query(query).ok().flatten();
            answer.is_some()
        })?;
        answer.context("There is no answer")
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every query that the documents offer.
    fn offered() -> Vec<String> {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let read = |name: &str| fs::read_to_string(docs.join(name)).unwrap();
        let mut queries = Vec::new();
        expressions(
            &serde_json::from_str(&read("metrics/dashboard.json")).unwrap(),
            &mut queries,
        );
        // The rules and the page, whose other lines hold no sums.
        for page in ["metrics/alerts.yml", "metrics.md"] {
            queries.extend(read(page).lines().map(str::to_owned));
        }
        queries
    }

    #[test]
    fn every_sum_that_is_offered_keeps_the_host() {
        let mut sums = 0;
        for query in offered() {
            for operation in ["sum", "count", "max", "min", "avg"] {
                for (at, _) in query.match_indices(&format!("{operation} by (")) {
                    let labels = query[at..].split(')').next().unwrap_or_default();
                    // Or the query is about one host only.
                    let one_host = query[at..].contains("instance=\\\"");
                    assert!(labels.contains("instance") || one_host, "{query}");
                    sums += 1;
                }
                assert!(!query.contains(&format!("{operation}(")), "{query}");
            }
        }
        assert!(sums > 10, "{sums}");
    }
}
