use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::*;
use crate::vhost_user::BackendChannel;

fn message(request: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    [&[request, 1, len].map(u32::to_ne_bytes).concat(), payload].concat()
}

fn inbox(socket: &UnixStream) -> Inbox<'_> {
    Inbox::new(socket.as_fd(), &never(), None).unwrap()
}

/// Returns an eventfd that is never written.
fn never() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

fn fds(next: Next) -> usize {
    match next {
        Next::Message(preview) => preview.fds.len(),
        other => panic!("{other:?}"),
    }
}

/// A frontend that connects again waits for nobody.
#[test]
fn another_frontend_is_told_of_only_while_one_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    for stays in [true, false] {
        let (frontend, backend) = UnixStream::pair().unwrap();
        let mut inbox = Inbox::new(backend.as_fd(), &never(), Some(listener.as_fd())).unwrap();
        let frontend = Some(frontend).filter(|_| stays);
        let _other = UnixStream::connect(&path).unwrap();
        let next = inbox.next().unwrap();
        assert_eq!(matches!(next, Next::Another), stays, "{next:?}");
        listener.accept().unwrap();
        drop(frontend);
    }
}

#[test]
fn messages_are_returned_only_when_complete() {
    let whole = message(9, &[7; 40]);
    for cut in 0..whole.len() {
        let (frontend, mut backend) = UnixStream::pair().unwrap();
        frontend.set_nonblocking(true).unwrap();
        let fd = frontend.as_raw_fd();
        let received = thread::scope(|scope| {
            // The descriptor comes with the first part, and a peek ends after that part.
            if cut > 0 {
                frontend.send_with_fd(&whole[..cut], fd).unwrap();
            }
            let waiting = scope.spawn(|| {
                let mut inbox = inbox(&backend);
                fds(inbox.next().unwrap())
            });
            // One byte at a time.
            for byte in &whole[cut..] {
                assert!(!waiting.is_finished());
                (&frontend).write_all(&[*byte]).unwrap();
            }
            waiting.join().unwrap()
        });
        assert_eq!(received, usize::from(cut > 0), "cut at {cut}");
        let mut read = vec![0; whole.len()];
        backend.read_exact(&mut read).unwrap();
        assert_eq!(read, whole, "the message stays in the socket");
    }
}

#[test]
fn messages_before_the_end_are_seen() {
    let (mut frontend, mut backend) = UnixStream::pair().unwrap();
    frontend.write_all(&message(3, &[])).unwrap();
    frontend.write_all(&message(9, &[7; 40])[..20]).unwrap();
    drop(frontend);
    let socket = backend.try_clone().unwrap();
    let mut inbox = inbox(&socket);
    assert_eq!(fds(inbox.next().unwrap()), 0);
    backend.read_exact(&mut [0; 12]).unwrap();
    assert!(matches!(inbox.next(), Err(InboxError::Cut(20))));
    backend.read_exact(&mut [0; 20]).unwrap();
    assert!(matches!(inbox.next(), Ok(Next::End)));
}

#[test]
fn stop_ends_the_wait_within_a_message() {
    for len in [0, 20, 52] {
        let (mut frontend, backend) = UnixStream::pair().unwrap();
        frontend.write_all(&message(9, &[7; 40])[..len]).unwrap();
        backend.set_nonblocking(true).unwrap();
        // There is never room for an answer.
        while (&backend).write(&[0; 4096]).is_ok() {}
        let stop = never();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| Inbox::new(backend.as_fd(), &stop, None).unwrap().next());
            assert!(!waiting.is_finished());
            stop.write(1).unwrap();
            assert!(matches!(waiting.join().unwrap(), Ok(Next::End)));
        });
    }
}

#[test]
fn messages_wait_for_room_for_their_answer() {
    let (mut frontend, mut backend) = UnixStream::pair().unwrap();
    frontend.write_all(&message(1, &[])).unwrap();
    backend.set_nonblocking(true).unwrap();
    let mut filled = 0;
    while let Ok(len) = backend.write(&[0; 4096]) {
        filled += len;
    }
    thread::scope(|scope| {
        let backend = &backend;
        let waiting = scope.spawn(move || fds(inbox(backend).next().unwrap()));
        let mut read = 0;
        while read < filled {
            assert!(read > 0 || !waiting.is_finished());
            read += frontend.read(&mut [0; 4096]).unwrap();
        }
        assert_eq!(waiting.join().unwrap(), 0);
    });
}

#[test]
fn too_many_descriptors_are_refused() {
    for (parts, refused) in [
        (vec![(52, 32)], false),
        (vec![(52, 33)], true),
        (vec![(52, 253)], true),
        (vec![(4, 0), (8, 33)], true),
        (vec![(12, 1), (40, 33)], true),
        (vec![(12, 20), (20, 20)], true),
    ] {
        let (frontend, backend) = UnixStream::pair().unwrap();
        let whole = message(9, &[7; 40]);
        let mut at = 0;
        for (len, count) in &parts {
            frontend
                .send_with_fds(&[&whole[at..at + len]], &vec![0; *count])
                .unwrap();
            at += len;
        }
        (&frontend).write_all(&whole[at..]).unwrap();
        let next = inbox(&backend).next();
        assert_eq!(
            matches!(next, Err(InboxError::TooManyFds)),
            refused,
            "{parts:?}: {next:?}"
        );
    }
}

#[test]
fn only_the_channels_socket_is_duplicated() {
    for (request, offered) in [(SET_BACKEND_REQ_FD, true), (1, false), (20, false), (22, false)] {
        let (frontend, backend) = UnixStream::pair().unwrap();
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let sent = message(request, &[]);
        frontend.send_with_fd(sent.as_slice(), ours.as_raw_fd()).unwrap();
        drop(ours);
        let Next::Message(preview) = inbox(&backend).next().unwrap() else {
            panic!("the connection has ended");
        };
        let socket = preview.into_backend_socket();
        assert_eq!(socket.is_some(), offered, "{request}");
        if offered {
            let channel = BackendChannel::default();
            channel.set(socket, "disk.img");
            channel.resume();
            channel.config_changed();
            theirs.read_exact(&mut [0; 12]).unwrap();
        }
        let (len, file) = backend.recv_with_fd(&mut [0; 12]).unwrap();
        assert_eq!((len, file.is_some()), (12, true), "the message stays");
    }
}
