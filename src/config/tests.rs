use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// An environment for tests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Map(pub(crate) BTreeMap<String, String>);

impl Map {
    pub(crate) fn of(pairs: &[(&str, &str)]) -> Self {
        Self(
            pairs
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
        )
    }
}

impl Strings for Map {
    fn get(&self, name: &str) -> Result<Option<String>, NotUnicode> {
        match self.0.get(name) {
            Some(value) if value == "\u{fffd}" => Err(NotUnicode),
            value => Ok(value.cloned()),
        }
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}

const KEY: &str = "0123456789abcdef";

fn read(pairs: &[(&str, &str)]) -> Result<ProcessConfig, Vec<String>> {
    let mut all = vec![("API_KEY", KEY), ("TSP_CONFIG_FILE", "tenants.toml")];
    all.extend_from_slice(pairs);
    ProcessConfig::from_strings(&Map::of(&all), Mode::Serve)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

fn warnings(config: &ProcessConfig) -> Vec<String> {
    config.warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn the_defaults_are_those_of_the_documentation() {
    let config = read(&[]).unwrap();
    assert_eq!(config.http, "0.0.0.0:7777".parse().unwrap());
    assert_eq!(config.health, "0.0.0.0:9000".parse().unwrap());
    let events = config.events.as_ref().unwrap();
    assert_eq!(events.listen, "0.0.0.0:5555".parse().unwrap());
    assert_eq!(events.send_timeout, Duration::from_millis(25));
    assert_eq!(
        (events.channel_size, events.high_water_mark),
        (25_000, 25_000)
    );
    assert!(!events.required && !config.allow_local_kms && config.log_filter.is_none());
    assert_eq!(config.cores, CoreWishes::default());
    assert!(config.api_key_2.is_none() && config.warnings.is_empty());
}

#[test]
fn a_specific_address_overrides_the_general_one_and_may_be_an_ip_alone() {
    let config = read(&[
        ("TSP_BIND_ADDRESS", "10.0.0.1"),
        ("TSP_HTTP_BIND_ADDRESS", "10.0.0.2"),
        ("TSP_HEALTH_BIND_ADDRESS", "127.0.0.1:9100"),
    ])
    .unwrap();
    assert_eq!(config.http, "10.0.0.2:7777".parse().unwrap());
    assert_eq!(config.health, "127.0.0.1:9100".parse().unwrap());
    assert_eq!(
        config.events.unwrap().listen,
        "10.0.0.1:5555".parse().unwrap()
    );
}

#[test]
fn ipv6_is_taken_with_and_without_brackets() {
    for (text, want) in [
        ("::1", "[::1]:7777"),
        ("[::1]", "[::1]:7777"),
        ("[::]:80", "[::]:80"),
    ] {
        let config = read(&[("TSP_HTTP_BIND_ADDRESS", text)]).unwrap();
        assert_eq!(config.http, want.parse().unwrap(), "{text}");
    }
}

#[test]
fn the_operators_own_endpoints_may_lead_into_his_networks_unless_a_list_says_otherwise() {
    let allowed = |pairs: &[(&str, &str)]| read(pairs).unwrap().destinations;
    let usual = Destinations::of_the_operators_endpoints();
    assert_eq!(allowed(&[]), usual);
    assert_eq!(allowed(&[("TSP_KMS_ALLOW_ADDRESSES", "  ")]), usual);
    let default = VARIABLES
        .iter()
        .find(|variable| variable.name == "TSP_KMS_ALLOW_ADDRESSES")
        .unwrap()
        .default;
    assert_eq!(Destinations::parse(default).unwrap(), usual);
    let list = "10.4.0.0/16, loopback";
    let listed = allowed(&[("TSP_KMS_ALLOW_ADDRESSES", list)]);
    assert_eq!(listed, Destinations::parse(list).unwrap());
    assert_ne!(listed, usual);
}

#[test]
fn every_problem_is_told_at_once() {
    let problems = read(&[
        ("API_KEY", "two words"),
        ("API_KEY_2", "\u{fffd}"),
        ("TSP_CONFIG_FILE", ""),
        ("TSP_BIND_ADDRESS", "10.0.0.1:80"),
        ("TSP_HTTP_BIND_ADDRESS", "localhost"),
        ("TSP_ENABLE_LOGDRIVER_INTEGRATION", "yes"),
        ("TSP_SEND_LOGGING_TIMEOUT_MS", "-1"),
        ("TSP_SEND_HIGH_WATER_MARK", "0"),
        ("TSP_IO", "iocp"),
        ("TSP_SHARDS", "0"),
        ("TSP_CORES", "7-2"),
        ("TSP_CONTROL_CORE", "1024"),
        ("TSP_KMS_ALLOW_ADDRESSES", "10.1.2.3/8"),
        ("RUST_LOG", "a=b=c"),
    ])
    .unwrap_err();
    let places: Vec<_> = problems
        .iter()
        .map(|line| line.split(':').next().unwrap())
        .collect();
    assert_eq!(
        places,
        [
            "API_KEY",
            "API_KEY_2",
            "TSP_CONFIG_FILE",
            "TSP_BIND_ADDRESS",
            "TSP_HTTP_BIND_ADDRESS",
            "TSP_ENABLE_LOGDRIVER_INTEGRATION",
            "TSP_SEND_LOGGING_TIMEOUT_MS",
            "TSP_SEND_HIGH_WATER_MARK",
            "TSP_IO",
            "TSP_SHARDS",
            "TSP_CORES",
            "TSP_CONTROL_CORE",
            "TSP_KMS_ALLOW_ADDRESSES",
            "RUST_LOG",
        ]
    );
    assert_eq!(
        problems[7],
        "TSP_SEND_HIGH_WATER_MARK: \"0\" is not a whole number from 1 to 1000000"
    );
    assert!(
        problems
            .iter()
            .all(|line| !line.contains('\n') && !line.contains("two words"))
    );
}

#[test]
fn missing_keys_are_problems_only_when_serving() {
    let problems = ProcessConfig::from_strings(&Map::default(), Mode::Serve).unwrap_err();
    let places: Vec<_> = problems
        .iter()
        .map(|problem| problem.place.as_str())
        .collect();
    assert_eq!(places, ["API_KEY", "TSP_CONFIG_FILE"]);

    let dev = ProcessConfig::from_strings(&Map::default(), Mode::Dev).unwrap();
    assert!(dev.api_key.is_none() && dev.config_file.is_none());
    assert_eq!(dev.http, "127.0.0.1:7777".parse().unwrap());
    assert_eq!(dev.events.unwrap().send_timeout, Duration::ZERO);
}

#[test]
fn an_env_file_of_the_original_starts_and_says_what_is_missing() {
    let problems = ProcessConfig::from_strings(
        &Map::of(&[
            ("SERVICE_ACCOUNT_ID", "x"),
            ("SERVICE_CONFIG_ID", "1"),
            ("SERVICE_SEGMENT_ID", "1"),
            ("SERVICE_ENCRYPTION_PRIVATE_KEY", "x"),
            ("SERVICE_SIGNING_PRIVATE_KEY", "x"),
            ("IRONCORE_ENV", "stage"),
            ("CB_OVERRIDE", "stage"),
            ("API_KEY", KEY),
        ]),
        Mode::Serve,
    )
    .unwrap_err();
    let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
    let places: Vec<_> = problems
        .iter()
        .map(|problem| problem.place.as_str())
        .collect();
    let malformed = [
        "CONFIG_BROKER_URL",
        "SERVICE_ACCOUNT_ID",
        "SERVICE_ENCRYPTION_PRIVATE_KEY",
        "SERVICE_SIGNING_PRIVATE_KEY",
    ];
    assert_eq!(places, malformed);
    assert_eq!(told[0], "CONFIG_BROKER_URL: is missing");
    let config = read(&[("SERVICE_ACCOUNT_ID", "x"), ("IRONCORE_ENV", "stage")]).unwrap();
    assert!(config.warnings.is_empty());
}

#[test]
fn blanks_around_a_value_do_not_count() {
    let config = read(&[
        ("API_KEY", "0123456789abcdef\r"),
        ("API_KEY_2", " "),
        ("TSP_SHARDS", " 3 "),
    ])
    .unwrap();
    assert!(config.api_key.unwrap().matches(KEY.as_bytes()));
    assert!(config.api_key_2.is_none());
    assert_eq!(config.cores.shards, NonZeroUsize::new(3));
}

#[test]
fn listeners_must_not_overlap() {
    let problems = read(&[
        ("TSP_HEALTH_BIND_ADDRESS", "127.0.0.1:7777"),
        ("TSP_EVENT_BIND_ADDRESS", "[::]:7777"),
    ])
    .unwrap_err();
    assert_eq!(
        problems,
        [
            "TSP_HEALTH_BIND_ADDRESS: 127.0.0.1:7777 overlaps with the client API on 0.0.0.0:7777",
            "TSP_EVENT_BIND_ADDRESS: [::]:7777 overlaps with the client API on 0.0.0.0:7777",
            "TSP_EVENT_BIND_ADDRESS: [::]:7777 overlaps with health on 127.0.0.1:7777",
        ]
    );
    let loopback = "127.0.0.1:0";
    assert!(
        read(&[
            ("TSP_HTTP_BIND_ADDRESS", loopback),
            ("TSP_HEALTH_BIND_ADDRESS", loopback)
        ])
        .is_ok()
    );
    assert!(
        read(&[
            ("TSP_EVENT_BIND_ADDRESS", "0.0.0.0:9000"),
            ("TSP_ENABLE_LOGDRIVER_INTEGRATION", "false")
        ])
        .is_ok()
    );
}

#[test]
fn an_unknown_name_is_warned_about_with_the_nearest_known_one() {
    let config = read(&[
        ("TSP_HTTP_BIND_ADRESS", "10.0.0.1"),
        ("TSP_SHARD", "2"),
        ("TSP_SERVICE_HOST", "10.1.2.3"),
        ("TSP_SERVICE_PORT_HTTP", "7777"),
        ("TSP_PORT", "tcp://10.1.2.3:7777"),
        ("TSP_PORT_7777_TCP_ADDR", "10.1.2.3"),
        ("OTHER", "x"),
    ])
    .unwrap();
    assert_eq!(
        warnings(&config),
        [
            "TSP_HTTP_BIND_ADRESS: is not a variable of this proxy; the nearest known one is TSP_HTTP_BIND_ADDRESS",
            "TSP_SHARD: is not a variable of this proxy; the nearest known one is TSP_SHARDS",
        ]
    );
}

#[test]
fn a_missing_name_and_its_misspelling_are_told_together() {
    let map = Map::of(&[("API_KEY", KEY), ("TSP_CONFIG_FLE", "tenants.toml")]);
    let problems = ProcessConfig::from_strings(&map, Mode::Serve).unwrap_err();
    let places: Vec<_> = problems
        .iter()
        .map(|problem| problem.place.as_str())
        .collect();
    assert_eq!(places, ["TSP_CONFIG_FILE", "TSP_CONFIG_FLE"]);
    assert!(problems[1].why.ends_with("TSP_CONFIG_FILE"));
}

#[test]
fn a_short_or_repeated_api_key_is_warned_about() {
    let config = read(&[("API_KEY", "short"), ("API_KEY_2", "short")]).unwrap();
    assert_eq!(warnings(&config).len(), 3);
    assert!(!format!("{config:?}").contains("short\""));
}

#[test]
fn lists_of_cores_are_sorted_and_bounded() {
    assert_eq!(parse_cores("2-7").unwrap(), [2, 3, 4, 5, 6, 7]);
    assert_eq!(parse_cores("0, 2-3,2").unwrap(), [0, 2, 3]);
    for bad in ["", ",", "1-", "-1", "1-2-3", "x", "3-1", "0-99999999999"] {
        assert!(parse_cores(bad).is_err(), "{bad}");
    }
}

#[test]
fn events_cannot_be_required_and_switched_off() {
    let problems = read(&[
        ("TSP_EVENTS_REQUIRED", "true"),
        ("TSP_ENABLE_LOGDRIVER_INTEGRATION", "FALSE"),
    ])
    .unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
}

#[test]
fn traces_need_a_collector_and_a_share() {
    let with = |sample| {
        read(&[
            ("TSP_TRACE_ENDPOINT", "http://127.0.0.1:4318"),
            ("TSP_TRACE_SAMPLE", sample),
        ])
    };
    let sample = |config: ProcessConfig| config.traces.map(|traces| traces.sample);
    assert_eq!(sample(read(&[]).unwrap()), None);
    for (text, share) in [("", 0.01), ("0", 0.0), ("0.25", 0.25), ("1", 1.0)] {
        assert_eq!(sample(with(text).unwrap()), Some(share), "{text}");
    }
    for bad in ["-0.1", "1.1", "NaN", "1 %"] {
        assert_eq!(with(bad).unwrap_err().len(), 1, "{bad}");
    }
    let alone = read(&[("TSP_TRACE_SAMPLE", "1")]).unwrap();
    assert!(warnings(&alone)[0].contains("TSP_TRACE_ENDPOINT is not set"));
    let headers = |endpoint, headers| {
        read(&[
            ("TSP_TRACE_ENDPOINT", endpoint),
            ("TSP_TRACE_HEADERS", headers),
        ])
    };
    let two = "Api-Key=made%20up%2C, x-team = keys";
    for (endpoint, said) in [
        ("https://otel.example", 0),
        ("http://[::1]:4318", 0),
        ("http://otel.example", 1),
        ("", 1),
    ] {
        let config = headers(endpoint, two).unwrap();
        assert_eq!(warnings(&config).len(), said, "{endpoint}");
    }
    for bad in [
        "made-up",
        "a b=made-up",
        "host=made-up",
        "a=made-up%0A",
        "a=made-up,",
        "a=%FF",
    ] {
        let problems = headers("https://otel.example", bad).unwrap_err();
        assert_eq!(problems.len(), 1, "{bad}");
        assert!(!problems[0].to_string().contains("made-up"), "{problems:?}");
    }
    let no_url = read(&[
        ("TSP_TRACE_ENDPOINT", "otel:4318"),
        ("TSP_TRACE_SAMPLE", "1"),
    ]);
    assert_eq!(no_url.unwrap_err().len(), 1);
}

#[test]
fn options_name_themselves_in_problems() {
    let map = Map::of(&[("TSP_HTTP_BIND_ADDRESS", "10.0.0.1")]);
    let overlay = Overlay {
        options: vec![("TSP_HTTP_BIND_ADDRESS", "--http", "nowhere".to_owned())],
        below: &map,
    };
    let problems = ProcessConfig::from_strings(&overlay, Mode::Dev).unwrap_err();
    assert!(
        problems[0]
            .to_string()
            .starts_with("--http: \"nowhere\" is neither"),
        "{problems:?}"
    );
}

/// Names and defaults in the tables of a Markdown page whose head begins `| variable |`.
fn table_of_variables(page: &str) -> BTreeMap<String, String> {
    let mut rows = BTreeMap::new();
    let mut lines = page.lines();
    while lines.by_ref().any(|line| line.starts_with("| variable |")) {
        for line in lines.by_ref().take_while(|line| line.starts_with('|')) {
            let mut cells = line
                .trim_matches('|')
                .split('|')
                .map(|cell| cell.trim().replace('`', ""));
            rows.extend(cells.next().zip(cells.next()));
        }
    }
    rows.remove("---");
    rows
}

#[test]
fn the_documentation_lists_every_variable_with_its_default() {
    let known: BTreeMap<_, _> = VARIABLES
        .iter()
        .map(|variable| (variable.name.to_owned(), variable.default.to_owned()))
        .collect();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let operations = std::fs::read_to_string(root.join("docs/operations.md")).unwrap();
    assert_eq!(table_of_variables(&operations), known);

    // The front page may leave out what is not used, but must not contradict.
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap_or_default();
    for (name, default) in table_of_variables(&readme) {
        assert_eq!(known.get(&name), Some(&default), "{name} in README.md");
    }
}

#[test]
fn every_variable_is_listed_once() {
    let names: BTreeSet<_> = VARIABLES.iter().map(|variable| variable.name).collect();
    assert_eq!(names.len(), VARIABLES.len());
    assert!(VARIABLES.iter().all(|variable| !variable.effect.is_empty()));
}
