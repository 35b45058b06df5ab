//! The connections to Ceph clusters.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::super::error::OperationError;
use super::super::objects::Credentials;
use crate::account::Account;
use crate::ceph::{Cluster, ClusterOptions, Key, Threads};
use crate::daemon::options::BlockdevOptions;
use crate::sandbox::Mode;

/// The clusters that nodes use, by their configurations. Clones share them.
#[derive(Clone, Default)]
pub(in super::super) struct Clusters(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    mode: Mode,
    account: Option<Account>,
    threads: Option<Arc<Threads>>,
    known: Vec<Arc<Cluster>>,
}

impl Clusters {
    /// Confines the threads of librbd, and makes them run as this user.
    pub(in super::super) fn confine(&self, mode: Mode, account: Option<Account>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (state.mode, state.account) = (mode, account);
    }

    /// Returns the cluster that these options name.
    pub(super) fn get(
        &self,
        options: &BlockdevOptions,
        credentials: &Credentials,
        confined: bool,
    ) -> Result<Arc<Cluster>, OperationError> {
        let options = cluster_options(options, credentials)?;
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cluster) = state.known.iter().find(|cluster| *cluster.options() == options) {
            return Ok(Arc::clone(cluster));
        }
        if confined {
            return Err(OperationError::ConfinedCluster);
        }
        let threads = match &state.threads {
            Some(threads) => Arc::clone(threads),
            None => Arc::new(Threads::start(state.mode, state.account.as_ref())?),
        };
        state.threads = Some(Arc::clone(&threads));
        let cluster = Arc::new(Cluster::configure(options, &threads)?);
        state.known.push(Arc::clone(&cluster));
        Ok(cluster)
    }

    /// Configures the cluster that these options name, so that the confined process can use it.
    pub(in super::super) fn know(
        &self,
        options: &BlockdevOptions,
        credentials: &Credentials,
    ) -> Result<(), OperationError> {
        self.get(options, credentials, false).map(drop)
    }
}

impl fmt::Debug for Clusters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clusters")
    }
}

fn cluster_options(
    options: &BlockdevOptions,
    credentials: &Credentials,
) -> Result<ClusterOptions, OperationError> {
    let secret = options.key_secret.as_ref();
    let secret = secret.and_then(|id| credentials.secrets.get(id));
    Ok(ClusterOptions {
        conf: options.conf.clone(),
        user: options.user.clone(),
        monitors: options.monitors()?,
        key: secret.map(|secret| Key(BASE64_STANDARD.encode(&secret.0))),
    })
}
