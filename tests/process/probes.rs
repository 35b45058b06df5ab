//! The daemon's static probes.

use testkit::daemon::binary;
use testkit::machine::host;

#[test]
fn tracers_find_the_probes() {
    let notes = host("readelf", &["--notes", "--wide"], &binary());
    for name in ["take", "submit", "begin", "end", "complete", "publish", "notify"] {
        let found = notes.lines().zip(notes.lines().skip(1)).any(|(provider, line)| {
            provider.ends_with("Provider: vhost_user_blk") && line.trim() == format!("Name: {name}")
        });
        assert!(found, "{name} is missing: {notes}");
    }
}
