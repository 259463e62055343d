//! What is around the program keeps its promises: the systemd unit, the account, the gate, the
//! licences, the pages. (`systemd-analyze` itself runs in `.ci/run`.)
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use inspectd::verdict::Cause;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|err| panic!("{name}: {err}"))
}

/// All values of `[section] key=` in systemd's order; an empty one stays in the list.
fn values(section: &str, key: &str) -> Vec<String> {
    let mut here = "";
    let mut found = Vec::new();
    let unit = read("systemd/inspectd.service");
    for line in unit.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            here = name;
            continue;
        }
        let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("not a setting: {line}"));
        if here == section && name == key {
            found.push(value.to_owned());
        }
    }
    found
}

fn value(section: &str, key: &str) -> String {
    let found = values(section, key);
    assert_eq!(found.len(), 1, "[{section}] {key}= is there {} times", found.len());
    found[0].clone()
}

#[test]
fn the_unit_restarts_a_line_that_stands_still() {
    struct Case {
        section: &'static str,
        key: &'static str,
        want: &'static str,
        why: &'static str,
    }
    let cases = [
        Case { section: "Service", key: "Type", want: "notify", why: "READY=1 means armed" },
        Case { section: "Service", key: "NotifyAccess", want: "main", why: "nobody else pings" },
        Case { section: "Service", key: "WatchdogSec", want: "5", why: "a hang ends in a restart" },
        Case { section: "Service", key: "Restart", want: "always", why: "so does every other end" },
        Case {
            section: "Service",
            key: "RestartSec",
            want: "1",
            why: "parts are rejected meanwhile",
        },
        Case { section: "Service", key: "User", want: "inspectd", why: "not root" },
        Case {
            section: "Service",
            key: "StateDirectory",
            want: "inspectd",
            why: "the ledger's place",
        },
        Case {
            section: "Service",
            key: "ConfigurationDirectory",
            want: "inspectd",
            why: "its config",
        },
        Case {
            section: "Service",
            key: "ExecReload",
            want: "/bin/kill -HUP $MAINPID",
            why: "SIGHUP re-reads limits",
        },
        Case { section: "Service", key: "CapabilityBoundingSet", want: "", why: "it needs none" },
        Case { section: "Service", key: "NoNewPrivileges", want: "yes", why: "and gets none" },
        Case {
            section: "Install",
            key: "WantedBy",
            want: "multi-user.target",
            why: "it starts at boot",
        },
    ];
    for Case { section, key, want, why } in cases {
        assert_eq!(value(section, key), want, "[{section}] {key}: {why}");
    }
}

#[test]
fn the_unit_gives_up_where_a_person_must_come() {
    let seconds = |section, key| value(section, key).parse::<u32>().unwrap();
    let (interval, burst) =
        (seconds("Unit", "StartLimitIntervalSec"), seconds("Unit", "StartLimitBurst"));
    // A start that fails at once must run into the limit, so the burst fits the interval.
    assert!(burst * seconds("Service", "RestartSec") < interval, "{burst} starts in {interval} s");
    // The slowest start is not taken for a failure, nor a drain for a hang.
    assert!(seconds("Service", "TimeoutStartSec") >= 60);
    assert!(seconds("Service", "TimeoutStopSec") > seconds("Service", "WatchdogSec"));
}

#[test]
fn the_unit_checks_the_config_that_it_runs() {
    let check = value("Service", "ExecStartPre");
    let run = value("Service", "ExecStart");
    assert_eq!(run, "/usr/bin/inspectd run --config /etc/inspectd/config.toml");
    assert_eq!(check, run.replace(" run ", " check "));
    assert_eq!(Path::new(env!("CARGO_BIN_EXE_inspectd")).file_name().unwrap(), "inspectd");
}

#[test]
fn the_unit_leaves_cameras_and_wires_usable() {
    let service = |key| values("Service", key);
    assert!(service("PrivateDevices").is_empty(), "PrivateDevices= hides /dev/video*");
    assert!(service("PrivateNetwork").is_empty(), "PrivateNetwork= cuts the PLC off");
    assert!(service("ProcSubset").is_empty(), "ProcSubset=pid hides /proc/cpuinfo");
    assert_eq!(value("Service", "DevicePolicy"), "closed");
    assert!(service("DeviceAllow").contains(&"char-video4linux rw".to_owned()));
    assert!(service("DeviceAllow").contains(&"char-gpiochip rw".to_owned()));
    let families = value("Service", "RestrictAddressFamilies");
    for family in ["AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"] {
        assert!(families.split(' ').any(|word| word == family), "{family} is missing");
    }
}

#[test]
fn the_account_of_the_unit_is_made() {
    let account = read("systemd/inspectd.sysusers");
    let made = account.lines().find(|line| line.starts_with("u ")).unwrap();
    assert_eq!(made.split_whitespace().nth(1).unwrap(), value("Service", "User"));
    assert_eq!(value("Service", "User"), value("Service", "Group"));
}

#[test]
fn the_gate_can_be_run() {
    let mode = fs::metadata(path(".ci/run")).unwrap().permissions().mode();
    assert_eq!(mode & 0o111, 0o111, ".ci/run has mode {mode:o}");
}

#[test]
fn every_licence_that_the_package_names_is_there() {
    let package: toml::Table = read("Cargo.toml").parse().unwrap();
    let licence = package["package"]["license"].as_str().unwrap();
    for name in licence.split(" OR ") {
        let (file, first) = match name {
            "MIT" => ("LICENSE-MIT", "Permission is hereby granted, free of charge"),
            "Apache-2.0" => ("LICENSE-APACHE", "Apache License"),
            other => panic!("no file is known for {other}"),
        };
        assert!(read(file).contains(first), "{file} is not the {name} licence");
    }
}

/// The night shift looks a cause up by the word in the log line.
#[test]
fn operations_has_a_paragraph_for_each_cause() {
    let page = read("docs/operations.md");
    let titles: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### `cause=")?.strip_suffix('`'))
        .collect();
    let words: BTreeSet<&str> = Cause::ALL.into_iter().map(Cause::word).collect();
    assert_eq!(titles, words);
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut pages: Vec<PathBuf> = Vec::new();
    for folder in ["", "docs", "docs/decisions"] {
        let entries = fs::read_dir(path(folder)).unwrap();
        pages.extend(
            entries
                .map(|entry| entry.unwrap().path())
                .filter(|p| p.extension().is_some_and(|e| e == "md")),
        );
    }
    assert!(pages.len() >= 5, "found only {pages:?}");
    let mut broken = Vec::new();
    let mut checked = 0;
    for page in &pages {
        let text = fs::read_to_string(page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            checked += 1;
            if !page.parent().unwrap().join(file).exists() {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(checked > 0, "no link was found at all");
    assert_eq!(broken, Vec::<String>::new());
}
