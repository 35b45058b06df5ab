//! Tests with valid and broken streams of bytes.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Feeds a stream and returns the messages, with errors as text.
fn feed(framer: &mut Framer, stream: &[u8]) -> Vec<Result<Value, String>> {
    let frames = stream.iter().filter_map(|&byte| framer.push(byte));
    frames
        .map(|frame| frame.map(Value::Object).map_err(|error| error.to_string()))
        .collect()
}

fn frames(stream: &[u8]) -> Vec<Result<Value, String>> {
    feed(&mut Framer::default(), stream)
}

/// Returns the number of errors that garbage causes before the next valid message, which must survive.
fn errors_before_good(garbage: &[u8]) -> usize {
    let mut stream = garbage.to_vec();
    stream.extend_from_slice(b"\n{\"good\": 1}");
    let mut found = frames(&stream);
    assert_eq!(found.pop(), Some(Ok(json!({"good": 1}))), "{garbage:?}");
    assert!(found.iter().all(Result::is_err), "{found:?}");
    found.len()
}

#[test]
fn values_across_reads_and_several_in_one() {
    let mut framer = Framer::default();
    assert_eq!(feed(&mut framer, b" {\"a\": [1, {\"b\""), []);
    assert_eq!(
        feed(&mut framer, b": \"}\"}]}{\"c\":null}\r\n"),
        [Ok(json!({"a": [1, {"b": "}"}]})), Ok(json!({"c": null})),]
    );
}

#[test]
fn single_quotes_are_strings_too() {
    let stream = br#"{'a': 'say "x" and \'y\' \\', "b": "it's \'z\'"}"#;
    let expected = json!({"a": "say \"x\" and 'y' \\", "b": "it's 'z'"});
    assert_eq!(frames(stream), [Ok(expected)]);
}

#[test]
fn each_piece_of_garbage_is_one_error() {
    for garbage in [
        &b"this is garbage"[..],
        b"}}}}]]]]",
        b"{\"a\":}",
        b"[1}",
        b"{\"a\":[1}]",
        b"{\"a\":1,}",
        b"{\"a\":1,\"a\":2}",
        b"{\"a\":1e400}",
        b"{\"a\":\"\\ud83d\"}",
        b"{\"a\":\"\xc3\x28\"}",
        b"# a comment",
        b"5",
        b"\"text\"",
        b"[]",
        b"\0",
        b"\xff",
        b"{\"half\": \"a mess",
        b"{\"half\": \xff",
    ] {
        assert_eq!(
            errors_before_good(garbage),
            1,
            "{:?}",
            String::from_utf8_lossy(garbage)
        );
    }
}

#[test]
fn control_characters_end_half_messages() {
    for end in [0x00, 0x1f, 0xfe, 0xff] {
        for half in [&b"{\"a\": \"te"[..], b"{\"a\": \"te\\"] {
            let mut framer = Framer::default();
            assert_eq!(feed(&mut framer, half), []);
            assert!(matches!(framer.push(end), Some(Err(_))));
            assert_eq!(feed(&mut framer, b"{\"b\": 1}"), [Ok(json!({"b": 1}))]);
        }
    }
}

#[test]
fn bombs_are_one_error_and_little_memory() {
    for bomb in [vec![b'['; 10 << 20], b"{\"a\":".repeat(1 << 20), {
        let mut text = b"{\"a\": \"".to_vec();
        text.resize(10 << 20, b'x');
        text
    }] {
        assert_eq!(errors_before_good(&bomb), 1);
    }
    let deep = [b"{\"a\":".repeat(100), b"1".to_vec(), b"}".repeat(100)].concat();
    assert!(frames(&deep)[0].is_ok(), "{:?}", frames(&deep));
}

#[test]
fn output_is_spaced_like_qemus() {
    let value = json!({"return": {}, "x": [1, "a,b"], "é": {"a": null}});
    assert_eq!(
        String::from_utf8(to_line(&value)).as_deref(),
        Ok("{\"return\": {}, \"x\": [1, \"a,b\"], \"é\": {\"a\": null}}\r\n")
    );
}

proptest! {
    #[test]
    fn any_bytes_leave_a_working_stream(garbage in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut framer = Framer::default();
        feed(&mut framer, &garbage);
        // A control character ends any state that the bytes left.
        feed(&mut framer, b"\x1f\n");
        prop_assert_eq!(feed(&mut framer, b"{\"a\": 1}"), [Ok(json!({"a": 1}))]);
    }
}
