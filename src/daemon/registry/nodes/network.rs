//! Nodes on NBD servers.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::super::error::OperationError;
use super::Images;
use super::open::remote_options;
use crate::connector;
use crate::daemon::options::BlockdevOptions;
use crate::engine::{BlockNode, NbdDisk, NbdOptions};
use crate::nbd::{Line, Remote};

impl Images {
    /// Connects to the server of a disk.
    pub(super) fn open_nbd(&mut self, options: &BlockdevOptions) -> Result<BlockNode, OperationError> {
        let tls = options.tls_creds.as_ref();
        let tls = tls.and_then(|id| self.credentials.tls.get(id));
        let seconds = |given: Option<u32>| Duration::from_secs(given.unwrap_or(0).into());
        let line = self.line(&options.remote(tls)?)?;
        let options = NbdOptions {
            reconnect_delay: seconds(options.reconnect_delay),
            open_timeout: seconds(options.open_timeout),
            remote: remote_options(options),
        };
        Ok(NbdDisk::open(&line, options)?.into())
    }

    /// Returns the line to what connects to this export.
    fn line(&mut self, remote: &Remote) -> Result<Arc<Line>, OperationError> {
        let mut lines = self.lines.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.iter().find(|line| line.remote() == remote) {
            return Ok(Arc::clone(line));
        }
        if self.confined {
            return Err(OperationError::ConfinedServer {
                server: remote.server.to_string(),
                export: remote.export.clone(),
            });
        }
        let line = connector::start_thread(remote)?;
        lines.push(Arc::clone(&line));
        Ok(line)
    }
}
