//! IOThreads, throttle groups and secrets.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::error::{OperationError, refuse, require, within};
use super::iothread_property::{IoThreadProperty, MOST_THREADS};
use super::secret_file::{SecretSource, read_secret};
use crate::affinity::pin_thread;
use crate::aio::IoThreadConfig;
use crate::daemon::options::{
    IoThreadOptions, ObjectOptions, ObjectType, SecretFormat, SecretOptions, TlsCredsOptions, TlsEndpoint,
    is_well_formed,
};
use crate::daemon::roster::Roster;
use crate::iothread::{IoThread, IoThreadParams};
use crate::sandbox::{Sandbox, ThreadKind};
use crate::thread_pool::{Spawner, ThreadPoolParams};
use crate::throttle::Group;

/// An object that a user has made.
#[derive(Clone, Debug)]
pub enum Object {
    /// An IOThread.
    IoThread(Arc<IoThreadObject>),
    /// A throttle group.
    Throttle(Arc<Group>),
    /// A secret.
    Secret(SecretOptions),
    /// Credentials for TLS.
    TlsCreds(TlsCredsOptions),
}

impl Object {
    /// Returns the object's type.
    pub fn kind(&self) -> ObjectType {
        match self {
            Self::IoThread(_) => ObjectType::IoThread,
            Self::Throttle(_) => ObjectType::ThrottleGroup,
            Self::Secret(_) => ObjectType::Secret,
            Self::TlsCreds(_) => ObjectType::TlsCredsX509,
        }
    }
}

/// An IOThread: its options, and the thread once it runs. Exports keep it alive after its name is deleted.
#[derive(Debug)]
pub struct IoThreadObject {
    id: String,
    options: Mutex<IoThreadOptions>,
    thread: OnceLock<Arc<IoThread>>,
}

impl IoThreadObject {
    pub(super) fn new(id: &str, options: IoThreadOptions) -> Arc<Self> {
        Arc::new(Self {
            id: id.to_owned(),
            options: Mutex::new(options),
            thread: OnceLock::new(),
        })
    }

    /// Returns the object's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the object's properties.
    pub fn options(&self) -> IoThreadOptions {
        self.lock().clone()
    }

    /// Changes a property, and also the thread if it runs: soon, without waiting for it.
    ///
    /// # Errors
    /// The number is impossible, or the thread has ended.
    pub fn set(&self, property: IoThreadProperty, value: u64) -> Result<(), OperationError> {
        let mut options = self.options();
        property.set(&mut options, value)?;
        *self.lock() = options.clone();
        if let Some(thread) = self.thread.get() {
            thread.adapt(&params(&options))?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, IoThreadOptions> {
        // Consistent even after a panic, because each change is one assignment.
        self.options.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the thread, if it runs.
    pub fn thread(&self) -> Option<&Arc<IoThread>> {
        self.thread.get()
    }

    /// Starts the thread if it does not run. Returns whether it was started.
    pub(super) fn start(&self, sandbox: &Sandbox, roster: &Roster) -> Result<bool, OperationError> {
        if self.thread.get().is_some() {
            return Ok(false);
        }
        let (workers, options) = (sandbox.clone(), self.options());
        let params = IoThreadParams {
            spawner: Spawner::new(move |name, body| workers.spawn(ThreadKind::Worker, name, body)),
            ..params(&options)
        };
        let failed = |source| OperationError::IoThread {
            id: self.id.clone(),
            source,
        };
        let thread = IoThread::spawn(&self.id, &params).map_err(failed)?;
        if let Some(cpus) = &options.cpu_affinity {
            pin_thread(thread.thread_id(), cpus).map_err(|source| OperationError::Pin {
                id: self.id.clone(),
                cpus: cpus.clone(),
                source,
            })?;
        }
        roster.add_iothread(&self.id, thread.figures());
        // Always succeeds: only the main thread starts IOThreads.
        Ok(self.thread.set(Arc::new(thread)).is_ok())
    }
}

/// Returns the settings of an IOThread with these properties.
fn params(options: &IoThreadOptions) -> IoThreadParams {
    IoThreadParams {
        config: IoThreadConfig {
            poll_max: Duration::from_nanos(options.poll_max_ns),
        },
        thread_pool: ThreadPoolParams {
            min_threads: options.thread_pool_min.into(),
            max_threads: options.thread_pool_max.into(),
        },
        max_batch: options.aio_max_batch,
        ..IoThreadParams::default()
    }
}

/// The objects that nodes use to prove who they are, by id.
#[derive(Clone, Debug, Default)]
pub(super) struct Credentials {
    pub(super) tls: BTreeMap<String, TlsCredsOptions>,
    pub(super) secrets: BTreeMap<String, SecretOptions>,
}

/// The objects, by id.
#[derive(Debug, Default)]
pub(super) struct Objects(BTreeMap<String, Object>);

impl Objects {
    pub(super) fn get(&self, id: &str) -> Option<&Object> {
        self.0.get(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Object)> {
        self.0.iter().map(|(id, object)| (id.as_str(), object))
    }

    pub(super) fn iothreads(&self) -> impl Iterator<Item = &Arc<IoThreadObject>> {
        self.0.values().filter_map(|object| match object {
            Object::IoThread(iothread) => Some(iothread),
            _ => None,
        })
    }

    pub(super) fn iothread(&self, id: &str) -> Result<Arc<IoThreadObject>, OperationError> {
        match self.0.get(id) {
            Some(Object::IoThread(iothread)) => Ok(Arc::clone(iothread)),
            _ => Err(OperationError::NoIoThread { id: id.to_owned() }),
        }
    }

    pub(super) fn group(&self, id: &str) -> Result<Arc<Group>, OperationError> {
        match self.0.get(id) {
            Some(Object::Throttle(group)) => Ok(Arc::clone(group)),
            _ => Err(OperationError::NoGroup { id: id.to_owned() }),
        }
    }

    pub(super) fn tls_creds(&self, id: &str) -> Result<&TlsCredsOptions, OperationError> {
        match self.0.get(id) {
            Some(Object::TlsCreds(creds)) => Ok(creds),
            _ => Err(OperationError::NoTlsCreds { id: id.to_owned() }),
        }
    }

    pub(super) fn secret(&self, id: &str) -> Result<&SecretOptions, OperationError> {
        match self.0.get(id) {
            Some(Object::Secret(secret)) => Ok(secret),
            _ => Err(OperationError::MissingSecret { id: id.to_owned() }),
        }
    }

    /// Returns the credentials by id, for other threads.
    pub(super) fn credentials(&self) -> Credentials {
        let secrets = self.0.iter().filter_map(|(id, object)| match object {
            Object::Secret(secret) => Some((id.clone(), secret.clone())),
            _ => None,
        });
        let tls = self.0.iter().filter_map(|(id, object)| match object {
            Object::TlsCreds(creds) => Some((id.clone(), creds.clone())),
            _ => None,
        });
        Credentials {
            tls: tls.collect(),
            secrets: secrets.collect(),
        }
    }

    /// Makes an object. An IOThread is not started yet.
    pub(super) fn add(
        &mut self,
        options: ObjectOptions,
        secrets: SecretSource,
    ) -> Result<&Object, OperationError> {
        let id = options.id.clone();
        if !is_well_formed(&id) {
            return Err(OperationError::BadId { id });
        }
        if self.0.contains_key(&id) {
            return Err(OperationError::ObjectExists { id });
        }
        let object = match options.qom_type {
            ObjectType::IoThread => Object::IoThread(IoThreadObject::new(&id, iothread_options(options)?)),
            ObjectType::ThrottleGroup => {
                refuse_iothread(&options)?;
                refuse_secret(&options)?;
                refuse_tls(&options)?;
                Object::Throttle(Group::new(&id, options.limits.unwrap_or_default())?)
            }
            ObjectType::Secret => Object::Secret(secret(&options, secrets)?),
            ObjectType::TlsCredsX509 => Object::TlsCreds(tls_creds(&options)?),
        };
        Ok(self.0.entry(id).or_insert(object))
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<Object> {
        self.0.remove(id)
    }
}

fn iothread_options(options: ObjectOptions) -> Result<IoThreadOptions, OperationError> {
    refuse_secret(&options)?;
    refuse_tls(&options)?;
    refuse(&[("limits", options.limits.is_some())])?;
    let defaults = IoThreadOptions::default();
    let max = options.thread_pool_max.unwrap_or(defaults.thread_pool_max);
    let poll_max_ns = options.poll_max_ns.unwrap_or(defaults.poll_max_ns);
    Ok(IoThreadOptions {
        poll_max_ns: within("poll-max-ns", poll_max_ns, 0..=i64::MAX.unsigned_abs())?,
        poll_grow: options.poll_grow.unwrap_or_default(),
        poll_shrink: options.poll_shrink.unwrap_or_default(),
        aio_max_batch: options.aio_max_batch.unwrap_or_default(),
        thread_pool_max: within("thread-pool-max", max, 1..=MOST_THREADS)?,
        thread_pool_min: within("thread-pool-min", options.thread_pool_min.unwrap_or(0), 0..=max)?,
        cpu_affinity: options.cpu_affinity,
    })
}

fn secret(options: &ObjectOptions, from: SecretSource) -> Result<SecretOptions, OperationError> {
    refuse_iothread(options)?;
    refuse_tls(options)?;
    refuse(&[("limits", options.limits.is_some())])?;
    match (&options.data, &options.file) {
        (None, None) => return Err(OperationError::NoSecret),
        (Some(_), Some(_)) => return Err(OperationError::TwoSecrets),
        _ => {}
    }
    let id = || options.id.clone();
    let text = match (&options.data, &options.file) {
        (Some(data), _) => data.clone().into_bytes(),
        (None, file) => read_secret(file.as_deref().unwrap_or("".as_ref()), from)
            .map_err(|source| OperationError::Secret { id: id(), source })?,
    };
    Ok(SecretOptions(match options.format.unwrap_or_default() {
        SecretFormat::Raw => text,
        SecretFormat::Base64 => BASE64_STANDARD
            .decode(text.trim_ascii())
            .map_err(|_| OperationError::NoBase64 { id: id() })?,
    }))
}

fn refuse_iothread(options: &ObjectOptions) -> Result<(), OperationError> {
    Ok(refuse(&[
        ("poll-max-ns", options.poll_max_ns.is_some()),
        ("poll-grow", options.poll_grow.is_some()),
        ("poll-shrink", options.poll_shrink.is_some()),
        ("aio-max-batch", options.aio_max_batch.is_some()),
        ("thread-pool-min", options.thread_pool_min.is_some()),
        ("thread-pool-max", options.thread_pool_max.is_some()),
        ("cpu-affinity", options.cpu_affinity.is_some()),
    ])?)
}

fn refuse_secret(options: &ObjectOptions) -> Result<(), OperationError> {
    Ok(refuse(&[
        ("data", options.data.is_some()),
        ("file", options.file.is_some()),
        ("format", options.format.is_some()),
    ])?)
}

/// Checks credentials for TLS. The processes that use them read the files.
pub(crate) fn tls_creds(options: &ObjectOptions) -> Result<TlsCredsOptions, OperationError> {
    refuse_iothread(options)?;
    refuse_secret(options)?;
    refuse(&[("limits", options.limits.is_some())])?;
    let endpoint = options.endpoint.unwrap_or_default();
    if endpoint == TlsEndpoint::Server {
        return Err(OperationError::ServerCreds);
    }
    let dir = require("dir", options.dir.clone())?;
    if let Some(source) = fs::metadata(&dir).err() {
        let id = options.id.clone();
        return Err(OperationError::CredsDirectory { id, dir, source });
    }
    Ok(TlsCredsOptions {
        dir,
        endpoint,
        verify_peer: options.verify_peer.unwrap_or(true),
    })
}

fn refuse_tls(options: &ObjectOptions) -> Result<(), OperationError> {
    Ok(refuse(&[
        ("dir", options.dir.is_some()),
        ("endpoint", options.endpoint.is_some()),
        ("verify-peer", options.verify_peer.is_some()),
    ])?)
}
