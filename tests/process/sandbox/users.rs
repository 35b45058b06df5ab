//! The daemon switches to another user.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use testkit::process::run_alone;
use vhost_user_blk::account::Account;

use super::probe::{Outcome, in_child};
use super::socket::{STRANGER, give_to, is_root};
use testkit::daemon::{Daemon, IMAGE, run};
use testkit::frontend::{Frontend, Op, all_features};
use testkit::process::threads;
use testkit::target::image;

/// Serves an image that only root may open.
fn start(options: &[&str]) -> Daemon {
    let dir = tempfile::tempdir().expect("make a directory");
    let path = dir.path().join(IMAGE);
    fs::write(&path, image()).expect("write the image");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("close the image");
    Daemon::start_in(dir, options)
}

#[test]
fn an_unprivileged_user_serves_a_root_only_image() {
    if !is_root() {
        return;
    }
    let user = format!("{STRANGER}:{}", STRANGER + 1);
    for (user, numbers) in [("nobody", Account::find("nobody")), (&user, Account::find(&user))] {
        let numbers = numbers.expect("a user");
        for sandbox in ["on", "off"] {
            let mut daemon = start(&["--user", user, "--sandbox", sandbox]);
            let mut frontend = Frontend::connect(&daemon.socket(), 1, 4, all_features()).expect("connect");
            let queue = frontend.queue(0);
            let write = Op::Write {
                offset: 0,
                data: vec![7; 512],
            };
            assert_eq!((queue.run(&write).ret, queue.run(&Op::Flush).ret), (0, 0));
            for thread in threads(daemon.pid()) {
                let all = |number: u32| [(); 4].map(|()| number.to_string()).join("\t");
                assert_eq!(thread["Uid"], all(numbers.uid()));
                assert_eq!(thread["Gid"], all(numbers.gid()));
                assert_eq!(thread["Groups"], "");
                assert_eq!(thread["CapEff"], "0000000000000000");
            }
            let socket = fs::metadata(daemon.socket()).expect("the socket");
            assert_eq!((socket.uid(), socket.gid()), (numbers.uid(), numbers.gid()));
            drop(frontend);
            let exit = daemon.terminate();
            assert!(exit.status.success(), "{}", exit.output);
            assert_eq!(daemon.image()[..512], [7; 512]);
        }
    }
}

#[test]
fn the_users_socket_is_removed_or_replaced() {
    if !is_root() {
        return;
    }
    let user = format!("{STRANGER}:{STRANGER}");
    let mut daemon = start(&["--user", &user]);
    daemon.restart(libc::SIGTERM);
    give_to(daemon.dir(), STRANGER);
    let exit = daemon.terminate();
    assert!(
        exit.status.success() && !daemon.socket().exists(),
        "{}",
        exit.output
    );
}

#[test]
fn an_unknown_user_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("make a directory");
    fs::write(dir.path().join(IMAGE), image()).expect("write the image");
    for (user, told) in [
        ("no-such-user", "--user: there is no user no-such-user"),
        ("root:no-such-group", "--user: there is no group no-such-group"),
        ("3999999999", "3999999999:GROUP"),
    ] {
        let args = ["--socket-path", "s", "--blk-file", IMAGE, "--user", user];
        let exit = run(&args, dir.path());
        assert!(
            !exit.status.success() && exit.output.contains(told),
            "{}",
            exit.output
        );
        assert_eq!(exit.output.lines().count(), 1, "{}", exit.output);
        assert!(!dir.path().join("s").exists());
    }
}

#[test]
fn only_root_can_become_another_user() {
    if is_root() {
        run_alone("sandbox::users::body_of_not_root");
    }
}

#[test]
#[ignore = "needs a process of its own"]
fn body_of_not_root() {
    let stranger = Account::find(&format!("{STRANGER}:{STRANGER}")).expect("a number");
    let found = in_child(|| {
        stranger.become_it().expect("root can");
        stranger.become_it().expect("he is");
        let other = Account::find("nobody").expect("a user").become_it();
        let told = other.expect_err("he is not").to_string();
        // SAFETY: numbers only.
        let back = unsafe { libc::setuid(0) };
        i32::from(!(told.contains("cannot become user nobody") && back == -1))
    });
    assert_eq!(found, Outcome::Done);
}
