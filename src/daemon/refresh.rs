//! SIGHUP: looks at the sizes of the images again. Main thread.

use super::registry::Registry;
use crate::service_manager::ServiceManager;

/// Looks at the sizes of all images, and tells the service manager.
pub(super) fn refresh(registry: &mut Registry, service_manager: &mut ServiceManager) {
    service_manager.reloading();
    if let Err(error) = registry.refresh_sizes() {
        tracing::error!(%error, "cannot look at the size of an image");
    }
    service_manager.ready(registry.disks().count());
}
