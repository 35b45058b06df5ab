//! Reads requests, and makes the heads of their answers.

use httparse::{EMPTY_HEADER, Error, Request, Status};

/// Maximum size of a request's head in bytes.
pub(super) const HEAD_MAX: usize = 8 << 10;
/// Maximum number of a request's header fields.
const FIELDS_MAX: usize = 64;
/// The path of the metrics.
const PATH: &str = "/metrics";
/// The type of the metrics in OpenMetrics format, without parameters.
const OPEN_METRICS: &str = "application/openmetrics-text";

/// A format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0, for clients that ask for it.
    OpenMetrics,
    /// The older text format of Prometheus.
    Prometheus,
}

impl Format {
    fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The metrics.
    Page(Format),
    /// The head of the answer with the metrics.
    PageHead(Format),
    /// A refusal.
    Refusal(Refusal),
}

/// The reason why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    NotHttp,
    NoSuchPath,
    Method,
    TooLarge,
}

impl Refusal {
    fn status(self) -> &'static str {
        match self {
            Self::NotHttp => "400 Bad Request",
            Self::NoSuchPath => "404 Not Found",
            Self::Method => "405 Method Not Allowed",
            Self::TooLarge => "431 Request Header Fields Too Large",
        }
    }

    /// Returns the whole answer.
    pub(super) fn text(self) -> String {
        let (status, body) = (self.status(), "the metrics are at /metrics\n");
        let allow = match self {
            Self::Method => "Allow: GET, HEAD\r\n",
            _ => "",
        };
        head(status, "text/plain; charset=utf-8", body.len(), allow) + body
    }
}

/// Returns the head of the answer with the metrics.
pub(super) fn page_head(format: Format, len: usize) -> String {
    head("200 OK", format.content_type(), len, "Vary: Accept\r\n")
}

fn head(status: &str, kind: &str, len: usize, more: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\n{more}Connection: close\r\n\r\n"
    )
}

/// Returns the answer to the request that has arrived so far, or `None` if its head is not complete.
pub(super) fn answer(bytes: &[u8]) -> Option<Answer> {
    let mut fields = [EMPTY_HEADER; FIELDS_MAX];
    let mut request = Request::new(&mut fields);
    let refusal = match request.parse(bytes) {
        Ok(Status::Complete(_)) => return Some(route(&request)),
        Ok(Status::Partial) if bytes.len() < HEAD_MAX => return None,
        Ok(Status::Partial) | Err(Error::TooManyHeaders) => Refusal::TooLarge,
        Err(_) => Refusal::NotHttp,
    };
    Some(Answer::Refusal(refusal))
}

fn route(request: &Request<'_, '_>) -> Answer {
    if path(request.path.unwrap_or_default()) != PATH {
        return Answer::Refusal(Refusal::NoSuchPath);
    }
    match request.method {
        Some("GET") => Answer::Page(format(request)),
        Some("HEAD") => Answer::PageHead(format(request)),
        _ => Answer::Refusal(Refusal::Method),
    }
}

/// Returns the format that a client prefers. Clients that accept OpenMetrics at all prefer it.
fn format(request: &Request<'_, '_>) -> Format {
    let accepts = |field: &httparse::Header<'_>| {
        let value = String::from_utf8_lossy(field.value).to_ascii_lowercase();
        field.name.eq_ignore_ascii_case("accept") && value.contains(OPEN_METRICS)
    };
    match request.headers.iter().any(accepts) {
        true => Format::OpenMetrics,
        false => Format::Prometheus,
    }
}

/// Returns the path of a request's target, which may be a whole URL.
fn path(target: &str) -> &str {
    let target = match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => target,
    };
    target.split('?').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(refusal: Refusal) -> Option<Answer> {
        Some(Answer::Refusal(refusal))
    }

    #[test]
    fn requests_get_what_they_ask_for() {
        use Format::{OpenMetrics, Prometheus};
        let accepts = |accept: &str| format!("GET /metrics HTTP/1.1\r\naccept: {accept}\r\n\r\n");
        for (accept, expected) in [
            (
                "application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
                OpenMetrics,
            ),
            (
                "text/plain, Application/OpenMetrics-Text; version=0.0.1",
                OpenMetrics,
            ),
            ("text/plain;version=0.0.4", Prometheus),
            ("*/*", Prometheus),
        ] {
            let found = answer(accepts(accept).as_bytes());
            assert_eq!(found, Some(Answer::Page(expected)), "{accept}");
        }
        for (request, expected) in [
            (
                "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n",
                Some(Answer::Page(Prometheus)),
            ),
            (
                "GET /metrics?a=b HTTP/1.0\r\n\r\n",
                Some(Answer::Page(Prometheus)),
            ),
            (
                "GET http://h:1/metrics HTTP/1.1\r\n\r\n",
                Some(Answer::Page(Prometheus)),
            ),
            ("\r\nGET /metrics HTTP/1.1\n\n", Some(Answer::Page(Prometheus))),
            (
                "HEAD /metrics HTTP/1.1\r\n\r\n",
                Some(Answer::PageHead(Prometheus)),
            ),
            ("POST /metrics HTTP/1.1\r\n\r\n", refusal(Refusal::Method)),
            ("get /metrics HTTP/1.1\r\n\r\n", refusal(Refusal::Method)),
            ("GET / HTTP/1.1\r\n\r\n", refusal(Refusal::NoSuchPath)),
            ("GET http://h HTTP/1.1\r\n\r\n", refusal(Refusal::NoSuchPath)),
            ("GET /metrics/ HTTP/1.1\r\n\r\n", refusal(Refusal::NoSuchPath)),
            ("GET /metrics HTTP/2.0\r\n\r\n", refusal(Refusal::NotHttp)),
            ("GET /metrics\r\n\r\n", refusal(Refusal::NotHttp)),
            ("\x16\x03\x01\x02\x00", refusal(Refusal::NotHttp)),
            ("GET /metrics HTTP/1.1\r\nHost", None),
            ("", None),
        ] {
            assert_eq!(answer(request.as_bytes()), expected, "{request:?}");
        }
    }

    #[test]
    fn large_heads_are_refused() {
        let fields = |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(count));
        assert_eq!(
            answer(fields(FIELDS_MAX).as_bytes()),
            refusal(Refusal::NoSuchPath)
        );
        assert_eq!(
            answer(fields(FIELDS_MAX + 1).as_bytes()),
            refusal(Refusal::TooLarge)
        );
        let mut long = format!("GET / HTTP/1.1\r\nA: {}", "b".repeat(HEAD_MAX));
        long.truncate(HEAD_MAX - 1);
        assert_eq!(answer(long.as_bytes()), None);
        long.push('b');
        assert_eq!(answer(long.as_bytes()), refusal(Refusal::TooLarge));
    }

    #[test]
    fn answers_are_complete_http() {
        let text = Refusal::Method.text();
        let mut fields = [EMPTY_HEADER; 8];
        let mut response = httparse::Response::new(&mut fields);
        let head = response.parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!(response.code, Some(405));
        let field = |name: &str| {
            let found = response.headers.iter().find(|field| field.name == name);
            found.map(|field| std::str::from_utf8(field.value).unwrap())
        };
        assert_eq!(field("Allow"), Some("GET, HEAD"));
        assert_eq!(field("Connection"), Some("close"));
        assert_eq!(field("Content-Length"), Some(&*(text.len() - head).to_string()));
    }
}
