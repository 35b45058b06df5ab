//! The locks on images and their backing files, as QEMU sees them.

use super::support::{directory, qemu_img, serve, try_run};

#[test]
fn images_and_backing_files_are_locked_against_writers() {
    let Some(dir) = directory() else { return };
    let dir = dir.path();
    qemu_img(dir, &["create", "-q", "-f", "qcow2", "base", "1M"]);
    qemu_img(
        dir,
        &["create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top"],
    );
    let (mut daemon, frontend) = serve(dir, "top", &["--follow-names"]);
    let write = |image| try_run(dir, "qemu-io", &["-f", "qcow2", "-c", "write 0 64k", image]);
    let resize = |image| try_run(dir, "qemu-img", &["resize", "-q", "-f", "qcow2", image, "2M"]);
    for image in ["base", "top"] {
        for refused in [write(image), resize(image)] {
            let told = refused.expect_err("the image is in use");
            assert!(told.contains("lock"), "{image}: {told}");
        }
        qemu_img(dir, &["info", image]);
        qemu_img(dir, &["check", "-q", image]);
    }
    drop(frontend);
    daemon.terminate();
    for image in ["base", "top"] {
        write(image).expect("nobody uses the image");
    }
}
