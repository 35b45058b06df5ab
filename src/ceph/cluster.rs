//! Connections to Ceph clusters. One for each configuration, shared by all images.

use std::ffi::{CString, c_int};
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::api::{Api, Pointer};
use super::error::{Error, text};
use super::few_threads;
use super::monitors::resolved;
use super::threads::Threads;

/// Seconds after which a cluster that does not answer cannot be connected to.
const CONNECT_TIME: &str = "10";
/// The configuration that is read if none is given.
const DEFAULT_CONFIGURATION: &str = "/etc/ceph/ceph.conf";
/// Bytes before the secret itself in a key: its type, its time and its length.
const KEY_HEADER: usize = 12;
/// The largest value of an option that is read.
const VALUE_MAX: usize = 4096;

/// The socket on which a client answers `ceph daemon`.
const ADMIN_SOCKET: &str = "admin_socket";

/// Options that are the same for all clusters.
const FIXED: [(&str, &str); 10] = [
    // A write is copied before it is sent: the guest may change its memory, and the checksums would not match.
    ("rbd_disable_zero_copy_writes", "true"),
    // A write that has completed must outlive this process.
    ("rbd_cache", "false"),
    // A client whose lock is broken must not write any more.
    ("rbd_blocklist_on_break_lock", "true"),
    ("client_mount_timeout", CONNECT_TIME),
    // Our own log has the errors, and the sandbox has no files.
    ("log_to_stderr", "false"),
    ("err_to_stderr", "false"),
    ("log_file", ""),
    // The sandbox has no Unix sockets either.
    (ADMIN_SOCKET, ""),
    ("log_to_syslog", "false"),
    ("err_to_syslog", "false"),
];

/// The configuration of a cluster's connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterOptions {
    /// The path of the configuration.
    pub conf: Option<PathBuf>,
    /// The name of the user, without `client.`.
    pub user: Option<String>,
    /// The addresses of monitors, instead of those in the configuration.
    pub monitors: Vec<String>,
    /// The user's key, instead of the one in the configuration.
    pub key: Option<Key>,
}

/// A key in base64. It is shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(pub String);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl ClusterOptions {
    fn user(&self) -> &str {
        self.user.as_deref().unwrap_or("admin")
    }
}

/// A cluster. Any thread.
pub struct Cluster {
    options: ClusterOptions,
    monitors: String,
    pub(super) api: &'static Api,
    pub(super) threads: Arc<Threads>,
    handle: Handle,
    connected: Mutex<bool>,
}

/// A `rados_t`, which stays for the rest of the process.
struct Handle(Pointer);

// SAFETY: librados locks what its threads share.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Cluster {
    /// Reads the configuration and the key. Connects to nobody, and creates no thread.
    ///
    /// # Errors
    /// librbd or the configuration is missing or wrong.
    pub fn configure(options: ClusterOptions, threads: &Arc<Threads>) -> Result<Self, Error> {
        let api = Api::get()?;
        let (name, user) = (c"ceph", c_string("user", &format!("client.{}", options.user()))?);
        let mut handle = ptr::null_mut();
        // SAFETY: all pointers are valid during the call.
        let code = unsafe { (api.rados_create2)(&raw mut handle, name.as_ptr(), user.as_ptr(), 0) };
        if code < 0 {
            return Err(option_error("user", options.user(), code));
        }
        let mut cluster = Self {
            options,
            monitors: String::new(),
            api,
            threads: Arc::clone(threads),
            handle: Handle(handle),
            connected: Mutex::new(false),
        };
        let read_numbers = || few_threads::OPTIONS.map(|option| cluster.get(option));
        let own = read_numbers();
        cluster.read_file()?;
        for option in few_threads::too_many(&own, &read_numbers()) {
            if cluster.set(option, "1").is_err() {
                tracing::debug!(option, "the Ceph client refuses a number of threads");
            }
        }
        let admin_socket = cluster.get(ADMIN_SOCKET);
        if !admin_socket.is_empty() {
            tracing::info!(
                path = admin_socket,
                "the Ceph client makes no admin socket: its sandbox has no Unix sockets"
            );
        }
        for (option, value) in FIXED {
            cluster.set(option, value).map_err(|error| match error {
                Error::Option { option, .. } => Error::TooOld { option },
                error => error,
            })?;
        }
        if let Some(Key(key)) = &cluster.options.key {
            cluster.set("key", key)?;
        }
        cluster.read_key()?;
        if !cluster.options.monitors.is_empty() {
            cluster.set("mon_host", &cluster.options.monitors.join(","))?;
        }
        cluster.monitors = resolved(&cluster.get("mon_host"))?;
        if cluster.monitors.is_empty() {
            return Err(Error::NoMonitor);
        }
        let monitors = cluster.monitors.clone();
        cluster.set("mon_host", &monitors)?;
        Ok(cluster)
    }

    /// Returns the configuration.
    pub fn options(&self) -> &ClusterOptions {
        &self.options
    }

    fn read_file(&self) -> Result<(), Error> {
        let default = PathBuf::from(DEFAULT_CONFIGURATION);
        let path = self.options.conf.as_ref().unwrap_or(&default);
        let failed = |why: String| Error::Configuration {
            path: path.display().to_string(),
            why,
        };
        // librados does not say why it cannot open a file.
        match fs::File::open(path) {
            // As in QEMU: who names the monitors needs no configuration.
            Err(_) if self.options.conf.is_none() && !self.options.monitors.is_empty() => return Ok(()),
            opened => opened.map(drop).map_err(|error| failed(error.to_string()))?,
        }
        let name = c_string("conf", &path.display().to_string())?;
        // SAFETY: the handle and the path are valid.
        match unsafe { (self.api.rados_conf_read_file)(self.handle.0, name.as_ptr()) } {
            code if code < 0 => Err(failed(text(code))),
            _ => Ok(()),
        }
    }

    /// Reads the user's key, because no file can be opened later.
    fn read_key(&self) -> Result<(), Error> {
        if !self.get("key").is_empty() {
            return Ok(());
        }
        let section = format!("[client.{}]", self.options.user());
        let files = self.get("keyring");
        for path in files.split([',', ';', ' ']).filter(|path| !path.is_empty()) {
            let Ok(keys) = fs::read_to_string(path) else {
                continue;
            };
            if let Some(key) = key_of(&keys, &section) {
                return self.set("key", key);
            }
        }
        Ok(())
    }

    fn set(&self, option: &'static str, value: &str) -> Result<(), Error> {
        let (name, c_value) = (c_string(option, option)?, c_string(option, value)?);
        // SAFETY: the handle and both strings are valid.
        match unsafe { (self.api.rados_conf_set)(self.handle.0, name.as_ptr(), c_value.as_ptr()) } {
            code if code < 0 => Err(option_error(option, value, code)),
            _ => Ok(()),
        }
    }

    /// Returns the value of an option. It is empty if it is not set.
    fn get(&self, option: &'static str) -> String {
        let Ok(name) = c_string(option, option) else {
            return String::new();
        };
        let mut value = vec![0_u8; VALUE_MAX];
        // SAFETY: the buffer has as many bytes.
        let code = unsafe {
            (self.api.rados_conf_get)(
                self.handle.0,
                name.as_ptr(),
                value.as_mut_ptr().cast(),
                value.len(),
            )
        };
        let end = value.iter().position(|byte| *byte == 0).unwrap_or(0);
        match code {
            code if code < 0 => String::new(),
            _ => String::from_utf8_lossy(&value[..end]).trim().to_owned(),
        }
    }

    /// Connects, if that has not happened yet. Only on a thread of [`Threads`].
    pub(super) fn connect(&self) -> Result<(), Error> {
        let mut connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        if *connected {
            return Ok(());
        }
        // SAFETY: the handle is valid.
        let code = unsafe { (self.api.rados_connect)(self.handle.0) };
        if code < 0 {
            return Err(Error::Connect {
                monitors: self.monitors.clone(),
                user: format!("client.{}", self.options.user()),
                why: self.refusal(code),
            });
        }
        *connected = true;
        Ok(())
    }

    /// Returns the reason why the cluster cannot be connected to.
    fn refusal(&self, code: c_int) -> String {
        let about_key = matches!(-code, libc::EACCES | libc::EPERM | libc::ENOENT | libc::EINVAL);
        if let Some(problem) = self.key_problem().filter(|_| about_key) {
            return problem;
        }
        match -code {
            // An unusual port is tried with both protocols, and the failure of one hides the refusal of the other.
            libc::ETIMEDOUT | libc::EACCES | libc::EPERM if !self.options.monitors.is_empty() => {
                "no monitor answers, or none accepts the key".to_owned()
            }
            libc::ETIMEDOUT => "no monitor answers".to_owned(),
            libc::EACCES | libc::EPERM => "the cluster refuses the key of this user".to_owned(),
            _ => text(code),
        }
    }

    /// Returns what is wrong with the user's key, if it is missing or no key at all. Then no monitor has been asked.
    fn key_problem(&self) -> Option<String> {
        let key = self.get("key");
        if key.is_empty() {
            let files = self.get("keyring");
            return Some(format!(
                "there is no key for this user in {} (key-secret, or options 'key' and 'keyring' of the configuration)",
                match files.is_empty() {
                    true => "the configuration",
                    false => &files,
                }
            ));
        }
        match BASE64_STANDARD.decode(key) {
            Ok(bytes) if bytes.len() > KEY_HEADER => None,
            _ => Some("the key of this user is not one that 'ceph auth get-key' prints".to_owned()),
        }
    }

    /// Opens a pool. Only on a thread of [`Threads`], after [`connect`](Self::connect).
    pub(super) fn pool(&self, name: &str, namespace: &str) -> Result<Pointer, Error> {
        let (pool, space) = (c_string("pool", name)?, c_string("namespace", namespace)?);
        let mut context = ptr::null_mut();
        // SAFETY: the handle is connected, and the pointers are valid.
        let code = unsafe { (self.api.rados_ioctx_create)(self.handle.0, pool.as_ptr(), &raw mut context) };
        if code < 0 {
            return Err(option_error("pool", name, code));
        }
        // SAFETY: the context was made just now.
        unsafe { (self.api.rados_ioctx_set_namespace)(context, space.as_ptr()) };
        Ok(context)
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// Returns a C string.
pub(super) fn c_string(option: &'static str, value: &str) -> Result<CString, Error> {
    CString::new(value).map_err(|_| Error::Option {
        option,
        value: value.replace('\0', "\\0"),
        why: "it has a zero byte".to_owned(),
    })
}

fn option_error(option: &'static str, value: &str, code: c_int) -> Error {
    Error::Option {
        option,
        value: match option {
            "key" => "(the key)".to_owned(),
            _ => value.to_owned(),
        },
        why: match (option, -code) {
            ("pool", libc::ENOENT) => "there is no such pool".to_owned(),
            _ => text(code),
        },
    }
}

/// Returns the key in a section of a keyring.
fn key_of<'a>(keys: &'a str, section: &str) -> Option<&'a str> {
    let mut lines = keys.lines().map(str::trim).skip_while(|line| *line != section);
    lines.next()?;
    lines
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once('='))
        .find(|(name, _)| name.trim() == "key")
        .map(|(_, key)| key.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_by_their_section() {
        let keys = "[client.a]\n\tkey = one==\n\tcaps = x\n[client.b]\n key=two\n";
        assert_eq!(key_of(keys, "[client.a]"), Some("one=="));
        assert_eq!(key_of(keys, "[client.b]"), Some("two"));
        assert_eq!(key_of(keys, "[client.c]"), None);
    }
}
