use super::*;

fn line(format: Format) -> String {
    Line::new(format, Level::Info, "access", "connection complete")
        .text("error", "a \"b\"\n\\é")
        .text("src.workload", "web-1")
        .show("dst.addr", "[::1]:80")
        .number("bytes_sent", 7)
        .maybe("absent", None)
        .finish()
}

#[test]
fn a_line_is_valid_json_whatever_its_fields_hold() {
    let read: serde_json::Value = serde_json::from_str(&line(Format::Json)).expect("JSON");
    assert_eq!(read["error"], "a \"b\"\n\\é");
    assert_eq!(
        (&read["level"], &read["scope"], &read["bytes_sent"]),
        (&"info".into(), &"access".into(), &7.into())
    );
}

#[test]
fn a_line_for_people_is_one_line_with_quotes_where_needed() {
    let text = line(Format::Text);
    let (time, rest) = text.split_once('\t').expect("tabs");
    assert!(time.ends_with('Z'));
    assert_eq!(
        rest,
        "info\taccess\tconnection complete\terror=\"a \\\"b\\\"\\u000a\\\\é\" src.workload=web-1 \
         dst.addr=[::1]:80 bytes_sent=7\n"
    );
}

#[test]
fn dates_are_civil() {
    for (second, text) in [
        (0, "1970-01-01T00:00:00.000000Z"),
        (951_782_399, "2000-02-28T23:59:59.000000Z"),
        (951_782_400, "2000-02-29T00:00:00.000000Z"),
        (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
        (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
    ] {
        assert_eq!(Rfc3339(Duration::from_secs(second)).to_string(), text);
    }
}

#[test]
fn lines_reach_a_file_in_order_and_each_target_has_its_level() {
    let path = std::env::temp_dir().join(format!("mesh-log-{}", std::process::id()));
    let log =
        Log::start(path.to_str().expect("UTF-8"), Format::Json, Level::Error).expect("writable");
    log.set_level(Target::Access, Level::Warn);
    assert!(log.shows(Target::Access, Level::Warn) && !log.shows(Target::Core, Level::Warn));
    for (level, text) in [
        (Level::Warn, "one"),
        (Level::Info, "hidden"),
        (Level::Error, "two"),
    ] {
        log.access(level, text, |line| line);
    }
    log.close();
    let written = std::fs::read_to_string(&path).expect("written");
    std::fs::remove_file(&path).expect("ours");
    let read: Vec<serde_json::Value> = written
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    assert_eq!(
        read.iter()
            .map(|l| l["message"].as_str())
            .collect::<Vec<_>>(),
        [Some("one"), Some("two")]
    );
}
