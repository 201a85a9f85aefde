use super::*;

#[test]
fn the_command_line_is_well_formed() {
    definition().debug_assert();
}

#[test]
fn subcommands_are_listed_in_order() {
    let names: Vec<String> = definition()
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect();
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(names, sorted);
}

#[test]
fn the_version_is_that_of_the_api() {
    let error = Cli::try_parse_from(["ch-remote", "--version"]).unwrap_err();
    let text = error.to_string();
    let mut lines = text.lines();
    assert_eq!(
        lines.next(),
        Some(&*format!("ch-remote v{}", crate::API_VERSION))
    );
    assert_eq!(
        lines.next(),
        Some(concat!("build v", env!("CARGO_PKG_VERSION")))
    );
}

#[test]
fn wrong_arguments_end_with_status_2() {
    for args in [&["ch-remote", "--nonsense"][..], &["ch-remote", "pong"]] {
        assert_eq!(Cli::try_parse_from(args).unwrap_err().exit_code(), 2);
    }
}

#[test]
fn a_known_subcommand_is_required() {
    for args in [
        &["ch-remote"][..],
        &["ch-remote", "--api-socket", "/a"],
        &["ch-remote", "--api-socket", "/a", "pong"],
    ] {
        assert!(Cli::try_parse_from(args).is_err(), "{args:?}");
    }
}

#[test]
fn a_request_of_cloud_hypervisors_that_is_not_here_is_refused_by_name() {
    let refused = |name: &str| {
        let args = ["ch-remote", "--api-socket", "/a", name, "file:///d"];
        unsupported(&Cli::try_parse_from(args).unwrap_err())
    };
    for name in UNSUPPORTED {
        let line = format!("{name} is not supported by this VMM");
        assert_eq!(refused(name), Some(Failure::Line(line)));
    }
    assert_eq!(refused("pong"), None);
}

#[test]
fn a_watch_has_an_interval_of_its_own_or_one_second() {
    let parse = |extra: &[&str]| {
        let args = [&["ch-remote", "--api-socket", "/a", "exit-stats"], extra].concat();
        match Cli::try_parse_from(args).unwrap().command {
            Command::ExitStats(args) => args,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(parse(&[]).watch, None);
    assert_eq!(parse(&["--watch"]).watch.unwrap().as_secs(), 1);
    assert_eq!(parse(&["--watch", "2.5"]).watch.unwrap().as_millis(), 2500);
    let args = parse(&["--watch", "--reason", "-1", "--format", "csv"]);
    assert_eq!(args.reason.as_deref(), Some("-1"));
}

#[test]
fn failures_look_like_cloud_hypervisors() {
    let response = crate::client::Response {
        status: 500,
        body: Some("[\"Error from API\",\"VM is not running\"]".into()),
        ..Default::default()
    };
    assert_eq!(
        Failure::from_response(&response).to_string(),
        "Error: ch-remote exited with the following chain of errors:\n  \
         0: http client error\n  1: Server responded with InternalServerError\n  \
         2: Error from API\n  3: VM is not running\n"
    );
    let error = Client::new("/no/such.sock")
        .request(crate::client::Method::Get, "/", None)
        .unwrap_err();
    assert_eq!(
        Failure::from(error).to_string(),
        "Error: Cannot connect to the API socket /no/such.sock: \
         No such file or directory (os error 2)\n"
    );
}

#[test]
fn recordings_are_subcommands_of_the_statistics() {
    let parse = |args: &[&str]| Cli::try_parse_from([&["ch-remote"], args].concat());
    let record = parse(&["--api-socket", "/a", "exit-stats", "record", "-o", "f"]).unwrap();
    assert!(matches!(
        record.command,
        Command::ExitStats(ExitStatsArgs {
            recording: Some(RecordingCommand::Record(_)),
            ..
        })
    ));
    // Neither of these needs a VMM.
    parse(&["exit-stats", "report", "f", "-o", "g"]).unwrap();
    parse(&["exporter", "--listen", "127.0.0.1:9283", "/run/*.sock"]).unwrap();
    assert!(parse(&["exit-stats", "report"]).is_err());
    assert!(parse(&["exit-stats", "--all", "report", "f", "-o", "g"]).is_err());
}
