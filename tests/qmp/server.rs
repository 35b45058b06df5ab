//! A monitor in this process, with commands that the tests control.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use vhost_user_blk::qmp::schema::{Object, Type, required};
use vhost_user_blk::qmp::{Command, Events, FdSets, Monitor, Reply, Run, Scope};

use crate::client::Client;

/// A running monitor. Dropping it stops it.
pub(crate) struct Server {
    dir: TempDir,
    pub(crate) events: Events,
    pub(crate) fdsets: FdSets,
    /// The replies that the `x-later` commands wait for, in the order of the commands.
    pub(crate) replies: Receiver<Reply>,
    /// Receives a message for each `quit`.
    pub(crate) quits: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

static ECHO: Object = Object::new("Echo", &[required("value", Type::Any)]);

fn echo(
    _: &mut Scope<'_, Sender<Reply>>,
    mut arguments: Map<String, Value>,
) -> Result<Value, vhost_user_blk::qmp::QmpError> {
    Ok(arguments["value"].take())
}

fn later(scope: &mut Scope<'_, Sender<Reply>>, _: Map<String, Value>, reply: Reply) {
    // Sending fails if the test has ended.
    let _ = scope.context.send(reply);
}

impl Server {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("make a directory");
        let commands = vec![
            Command {
                name: "x-echo",
                arguments: &ECHO,
                returns: Type::Any,
                run: Run::Now(echo),
            },
            Command {
                name: "x-later",
                arguments: Object::EMPTY,
                returns: Type::Any,
                run: Run::Later(Box::new(later)),
            },
        ];
        let (to_test, replies) = mpsc::channel();
        let (quit, quits) = mpsc::channel();
        let on_quit = move || quit.send(()).expect("the test waits for it");
        let mut monitor = Monitor::new(to_test, commands, on_quit).expect("make a monitor");
        let listener = UnixListener::bind(dir.path().join("qmp")).expect("bind");
        monitor.listen(listener).expect("listen");
        let (events, fdsets) = (monitor.events(), monitor.fdsets());
        let thread = Some(thread::spawn(|| monitor.run()));
        Self {
            dir,
            events,
            fdsets,
            replies,
            quits,
            thread,
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::join(self.dir.path(), "qmp")
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(&self.path())
    }

    /// Checks that the monitor still serves another client.
    pub(crate) fn check(&self) {
        let mut client = self.connect();
        assert_eq!(client.run("x-echo", &json!({"value": 7})), 7);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.events.stop();
        let ended = self.thread.take().map(JoinHandle::join);
        if !thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the monitor has panicked");
        }
    }
}
