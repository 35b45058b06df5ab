//! A Ceph cluster on this machine: one monitor, and one OSD that stores everything in memory.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};

use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::process::Process;
use crate::skip::skipped;

/// The daemon's socket.
pub const DISK: &str = "vhost-user-blk.sock";
pub const POOL: &str = "p";

/// A cluster. It ends, and its files go, with the last test that uses it.
pub struct Cluster {
    dir: TempDir,
    port: u16,
    osd: u32,
    images: AtomicU32,
    /// The processes end with the thread that has started them.
    end: Option<(Sender<()>, JoinHandle<()>)>,
}

/// Returns the cluster of the tests that run now. `None` if this machine has no Ceph: the test is skipped.
pub fn cluster() -> Option<Arc<Cluster>> {
    static CLUSTER: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
    for program in ["ceph-mon", "ceph-osd", "ceph", "rbd"] {
        let found = Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        if found.is_err() {
            skipped(format!("{program} is not installed"));
            return None;
        }
    }
    let mut present = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cluster) = present.upgrade() {
        return Some(cluster);
    }
    let cluster = Arc::new(Cluster::start());
    *present = Arc::downgrade(&cluster);
    Some(cluster)
}

/// Runs a program that must succeed. Returns its output.
fn run(dir: &Path, program: &str, args: &[&str]) -> String {
    let output = Command::new("timeout")
        .args(["100", program])
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .expect(program);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {told}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const OSD: &str = "11111111-2222-4333-8444-555555555555";
const CLUSTER: &str = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee";

/// The lease for reads outlives the time for which tests stop the OSD. In a pool with one copy, nobody renews a lease that
/// has expired, so a write that comes just then would wait for ever (the placement group stays `laggy`).
fn configuration(dir: &Path, port: u16) -> String {
    let dir = dir.display();
    format!(
        "[global]\nfsid = {CLUSTER}\nmon host = v2:127.0.0.1:{port}\n\
         auth cluster required = cephx\nauth service required = cephx\nauth client required = cephx\n\
         keyring = {dir}/keyring\npublic addr = 127.0.0.1\ncluster addr = 127.0.0.1\n\
         run dir = {dir}\nadmin socket =\nlog file = {dir}/$name.log\n\
         mon data = {dir}/mon\nmon data avail crit = 1\nmon allow pool size one = true\n\
         paxos propose interval = 0.01\nosd data = {dir}/osd\nosd objectstore = memstore\n\
         osd pool default size = 1\nosd pool default read lease ratio = 100\nosd crush chooseleaf type = 0\nms bind msgr1 = false\n"
    )
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

impl Cluster {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("make a directory");
        let (path, port) = (dir.path().to_owned(), free_port());
        fs::write(path.join("ceph.conf"), configuration(&path, port)).expect("write the configuration");
        fs::create_dir(path.join("mon")).expect("make a directory");
        fs::create_dir(path.join("osd")).expect("make a directory");
        let ((report, started), (end, ended)) = (mpsc::channel(), mpsc::channel());
        // The servers die with the thread that has started them, so it lives as long as the cluster.
        let servers = thread::spawn(move || {
            let servers = start_servers(&path, port);
            report.send(servers[1].pid()).expect("the creator waits");
            let _ = ended.recv();
        });
        let osd = started.recv().expect("the cluster starts");
        let cluster = Self {
            dir,
            port,
            osd,
            images: AtomicU32::new(0),
            end: Some((end, servers)),
        };
        cluster.ceph(&["osd", "pool", "create", POOL, "8"]);
        cluster
    }

    pub fn conf(&self) -> PathBuf {
        self.dir.path().join("ceph.conf")
    }

    /// Returns the port of the monitor on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Makes a user who may use images. Returns its key.
    pub fn user(&self, name: &str) -> String {
        let name = format!("client.{name}");
        let rights = ["mon", "profile rbd", "osd", "profile rbd"];
        self.ceph(&[&["auth", "get-or-create", &name], &rights[..]].concat());
        self.ceph(&["auth", "get-key", &name]).trim().to_owned()
    }

    pub fn ceph(&self, args: &[&str]) -> String {
        run(self.dir.path(), "ceph", &[&["-c", "ceph.conf"], args].concat())
    }

    pub fn rbd(&self, args: &[&str]) -> String {
        run(
            self.dir.path(),
            "rbd",
            &[&["-c", "ceph.conf", "-p", POOL], args].concat(),
        )
    }

    /// Makes an image of this size. Returns its name.
    pub fn image(&self, mib: u64) -> String {
        let name = format!("image{}", self.images.fetch_add(1, Ordering::Relaxed));
        self.rbd(&["create", &name, "--size", &format!("{mib}M")]);
        name
    }

    /// Makes an image with the contents of a file.
    pub fn import(&self, file: &Path, name: &str) {
        self.rbd(&["import", &file.display().to_string(), name]);
    }

    /// Returns the value of `--blk-file` for an image.
    pub fn file(&self, image: &str) -> String {
        format!("rbd:{POOL}/{image}:conf={}", self.conf().display())
    }

    /// Starts a daemon on an image.
    pub fn daemon(&self, image: &str, more: &[&str]) -> Daemon {
        let dir = tempfile::tempdir().expect("make a directory");
        let file = self.file(image);
        let args = ["--socket-path", DISK, "--blk-file", &file, "--sandbox", "auto"];
        Daemon::start_with(dir, &[&args, more].concat())
    }

    /// Returns the contents of an image.
    pub fn contents(&self, image: &str) -> Vec<u8> {
        let path = self.dir.path().join(format!("{image}.raw"));
        self.rbd(&["export", image, &path.display().to_string()]);
        let contents = fs::read(&path).expect("read the export");
        fs::remove_file(path).expect("remove the export");
        contents
    }

    /// Returns the process of the OSD.
    pub fn osd(&self) -> u32 {
        self.osd
    }

    /// Stops or continues the OSD.
    pub fn signal_osd(&self, signal: libc::c_int) {
        // SAFETY: only sends a signal to a process that this cluster has started and not reaped.
        unsafe { libc::kill(self.osd.try_into().expect("a process number"), signal) };
    }
}

fn start_servers(dir: &Path, port: u16) -> [Process; 2] {
    let keys = |args: &[&str]| run(dir, "ceph-authtool", args);
    keys(&[
        "-C",
        "keyring",
        "--gen-key",
        "-n",
        "mon.",
        "--cap",
        "mon",
        "allow *",
    ]);
    keys(&[
        "keyring",
        "--gen-key",
        "-n",
        "client.admin",
        "--cap",
        "mon",
        "allow *",
        "--cap",
        "osd",
        "allow *",
    ]);
    keys(&[
        "keyring",
        "--gen-key",
        "-n",
        "osd.0",
        "--cap",
        "mon",
        "allow profile osd",
        "--cap",
        "osd",
        "allow *",
    ]);
    let address = format!("[v2:127.0.0.1:{port}]");
    run(
        dir,
        "monmaptool",
        &["--create", "--fsid", CLUSTER, "--addv", "a", &address, "monmap"],
    );
    run(
        dir,
        "ceph-mon",
        &[
            "-c",
            "ceph.conf",
            "--mkfs",
            "-i",
            "a",
            "--monmap",
            "monmap",
            "--keyring",
            "keyring",
        ],
    );
    let start = |name: &'static str, id: &str| {
        let mut command = Command::new(name);
        // Debian 13's OSD looks for its classes in a relative directory.
        command
            .current_dir("/")
            .arg("-c")
            .arg(dir.join("ceph.conf"))
            .args(["-i", id, "-f"]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Process::start(name, &mut command, |_| ()).0
    };
    let monitor = start("ceph-mon", "a");
    run(dir, "ceph", &["-c", "ceph.conf", "osd", "new", OSD]);
    run(
        dir,
        "ceph-osd",
        &["-c", "ceph.conf", "-i", "0", "--mkfs", "--osd-uuid", OSD],
    );
    [monitor, start("ceph-osd", "0")]
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some((end, servers)) = self.end.take() {
            drop(end);
            // It has failed already if it panicked.
            let _ = servers.join();
        }
    }
}
