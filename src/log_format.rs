//! The form of the lines on stderr: for people, for the journal of systemd, or JSON.

use std::env;
use std::fmt::{self, Debug};
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;

use rustix::fs::fstat;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The form that the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text. If stderr is the journal, each line begins with its priority, and the journal adds the time.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The form of each line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Journal,
    Json,
}

static FORM: OnceLock<Form> = OnceLock::new();

/// Logs events of `level` and above to stderr from now on. Once per process.
pub fn init(format: LogFormat, level: Level) {
    let form = *FORM.get_or_init(|| match format {
        LogFormat::Json => Form::Json,
        LogFormat::Text => form_of_stderr(),
    });
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(form == Form::Text && std::io::stderr().is_terminal())
        .with_max_level(level)
        .with_target(false)
        // A log that cannot be written (its disk is full, its reader has gone) would be reported with a panic.
        .log_internal_errors(false);
    match form {
        Form::Text => log.init(),
        Form::Journal => log.event_format(Journal).init(),
        Form::Json => log.event_format(Json).init(),
    }
}

/// Writes text to stderr that is no event, in the form of the log. Its lines have the same level.
pub fn print(level: Level, text: &str) {
    let lines = text.lines().map(|line| match FORM.get_or_init(form_of_stderr) {
        Form::Text => format!("{line}\n"),
        Form::Journal => format!("<{}>{line}\n", priority(level)),
        Form::Json => json_line(level, Map::from_iter([("message".to_owned(), line.into())])),
    });
    // If stderr is gone, there is no other place for the text.
    let _ = std::io::stderr().write_all(lines.collect::<String>().as_bytes());
}

fn form_of_stderr() -> Form {
    let journal = env::var("JOURNAL_STREAM").ok();
    let own = fstat(std::io::stderr().as_fd()).map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
    match own {
        Ok(own) if journal.is_some_and(|journal| journal == own) => Form::Journal,
        _ => Form::Text,
    }
}

/// Returns the priority of a level, as in syslog.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// The message and the fields, after the priority. The journal has the time.
struct Journal;

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// An object with `timestamp`, `level`, `message` and the fields.
struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        writer.write_str(&json_line(*event.metadata().level(), fields.0))
    }
}

fn json_line(level: Level, mut members: Map<String, Value>) -> String {
    let mut time = String::new();
    // Writing to a string cannot fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    members.insert("timestamp".to_owned(), time.into());
    members.insert("level".to_owned(), level.as_str().into());
    format!("{}\n", Value::Object(members))
}

/// Collects the fields of an event. Numbers and truth values keep their types, and all else is text.
struct Fields(Map<String, Value>);

impl Fields {
    fn insert(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.insert(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value);
    }
}
