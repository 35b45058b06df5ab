//! Which options fit which driver.

use super::super::error::{OperationError, refuse};
use crate::daemon::options::{AioOption, BlockdevOptions, DetectZeroes, Driver, ValueError};
use crate::engine;

/// Refuses options that do not fit the driver, and options that are not supported.
pub(super) fn check(options: &BlockdevOptions) -> Result<(), OperationError> {
    use Driver::{File, HostDevice, Nbd, NullAio, NullCo, Qcow2, Raw, Rbd, Throttle};
    let driver = options.driver;
    let file = matches!(driver, File | HostDevice);
    let null = matches!(driver, NullCo | NullAio);
    refuse(&[
        ("filename", !file && options.filename.is_some()),
        ("locking", !file && options.locking.is_some()),
        ("aio", !file && options.aio.is_some()),
        ("aio-max-batch", !file && options.aio_max_batch.is_some()),
        ("mmap", !file && options.mmap.is_some()),
        (
            "file",
            !matches!(driver, Raw | Throttle | Qcow2) && options.file.is_some(),
        ),
        ("offset", driver != Raw && options.offset.is_some()),
        ("size", driver != Raw && !null && options.size.is_some()),
        ("latency-ns", !null && options.latency_ns.is_some()),
        ("read-zeroes", !null && options.read_zeroes.is_some()),
        (
            "throttle-group",
            driver != Throttle && options.throttle_group.is_some(),
        ),
        ("server", !matches!(driver, Nbd | Rbd) && options.server.is_some()),
        ("key-secret", driver != Rbd && options.key_secret.is_some()),
        ("export", driver != Nbd && options.export.is_some()),
        (
            "reconnect-delay",
            driver != Nbd && options.reconnect_delay.is_some(),
        ),
        ("open-timeout", driver != Nbd && options.open_timeout.is_some()),
        ("tls-creds", driver != Nbd && options.tls_creds.is_some()),
        ("tls-hostname", driver != Nbd && options.tls_hostname.is_some()),
        ("pool", driver != Rbd && options.pool.is_some()),
        ("namespace", driver != Rbd && options.namespace.is_some()),
        ("image", driver != Rbd && options.image.is_some()),
        ("snapshot", driver != Rbd && options.snapshot.is_some()),
        ("conf", driver != Rbd && options.conf.is_some()),
        ("user", driver != Rbd && options.user.is_some()),
        ("backing", driver != Qcow2 && options.backing.is_some()),
        ("data-file", driver != Qcow2 && options.data_file.is_some()),
        ("follow-names", driver != Qcow2 && options.follow_names.is_some()),
    ])?;
    if options
        .filename
        .as_ref()
        .is_some_and(|path| path.as_os_str().is_empty())
    {
        return Err(OperationError::Value(ValueError::Type {
            path: "filename".to_owned(),
            expected: "the path of a file or a device".to_owned(),
        }));
    }
    let caches = [
        ("cache-size", options.cache_size.is_some()),
        ("l2-cache-size", options.l2_cache_size.is_some()),
        ("l2-cache-entry-size", options.l2_cache_entry_size.is_some()),
        ("refcount-cache-size", options.refcount_cache_size.is_some()),
        ("cache-clean-interval", options.cache_clean_interval.is_some()),
    ];
    if driver != Qcow2 {
        refuse(&caches)?;
    }
    if options.aio == Some(AioOption::Native) && !options.cache.is_direct() {
        return Err(engine::Error::NativeBuffered.into());
    }
    if options.tls_hostname.is_some() && options.tls_creds.is_none() {
        return Err(OperationError::HostnameWithoutCreds);
    }
    if options.shares_writing() && !options.is_read_only() {
        return Err(OperationError::ForceShare);
    }
    if options.detect_zeroes == DetectZeroes::Unmap && !options.unmaps() {
        return Err(OperationError::DetectWithoutDiscard);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_filename_is_named() {
        let options = |path: &str| BlockdevOptions {
            filename: Some(path.into()),
            ..BlockdevOptions::new(Driver::File)
        };
        let told = check(&options("")).expect_err("refused").to_string();
        assert_eq!(
            told,
            "Parameter 'filename' expects the path of a file or a device"
        );
        assert!(check(&options("x")).is_ok());
    }
}
