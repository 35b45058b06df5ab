//! The daemon: arguments, logging, signals, exit code.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Parser;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;
use vhost_user_blk::account::{self, Account, find_group};
use vhost_user_blk::aio::{AioContext, IoThreadConfig};
use vhost_user_blk::blk::device::{BlkDevice, DeviceParams, TakeError};
use vhost_user_blk::blk::stats::Report;
use vhost_user_blk::config::{CAPABILITIES, Cli, Notify, OnOff, one_line};
use vhost_user_blk::engine::{BlockNode, Faults, NodeControl, Plan};
use vhost_user_blk::holders::holders;
use vhost_user_blk::iothread::{IoThread, IoThreadParams};
use vhost_user_blk::kernel;
use vhost_user_blk::limits;
use vhost_user_blk::mapping::pin_thread;
use vhost_user_blk::panics;
use vhost_user_blk::readiness::Readiness;
use vhost_user_blk::sandbox::{Keep, Sandbox, ThreadKind};
use vhost_user_blk::storage::{LockError, OpenOptions, foreign_format};
use vhost_user_blk::thread_pool::{Spawner, ThreadPoolParams};
use vhost_user_blk::vhost_user::path::SocketAccess;
use vhost_user_blk::vhost_user::server::Server;
use vhost_user_blk::vhost_user::{Resizer, inherited};

/// How long requests in flight may take once a signal asks the process to end.
const SHUTDOWN_TIME: Duration = Duration::from_millis(800);

/// Status for a wrong command line; it is 1 for everything else, such as a missing image.
const WRONG_OPTION: u8 = 2;

/// An option is wrong, so that starting again cannot help.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WrongOption(String);

fn main() -> ExitCode {
    panics::end_the_process();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            eprintln!("{}", one_line(&error));
            return ExitCode::from(WRONG_OPTION);
        }
        Err(help) => help.exit(),
    };
    if cli.print_capabilities {
        println!("{CAPABILITIES}");
        return ExitCode::SUCCESS;
    }
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_max_level(tracing::Level::from(cli.log_level))
        .with_target(false)
        .init();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            match error.is::<WrongOption>() {
                true => ExitCode::from(WRONG_OPTION),
                false => ExitCode::FAILURE,
            }
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    cli.check().map_err(WrongOption)?;
    kernel::check()?;
    // Before anything is opened, so that no descriptor of our own is taken for one that was handed over.
    let handed_over = handed_over(cli)?;
    // From the start, so that no signal finds its default action.
    let signals = Signals::new([SIGTERM, SIGINT, SIGUSR1, SIGHUP]).context("cannot handle signals")?;
    check_limits(cli);
    let node = open_node(cli)?;
    check_use(cli, &node)?;
    announce_faults(cli);
    let account = find_account(cli)?;
    let server = match handed_over {
        Some(server) => server,
        None => bind(cli, account.as_ref())?,
    };
    let readiness = Readiness::connect().context("NOTIFY_SOCKET")?;
    // All that needs rights is done, and there is one thread: those to come have none either.
    let sandbox = confine_process(cli, account.as_ref())?;
    let engine = node
        .plan(cli.aio.into())?
        .with_merging(cli.request_merging == OnOff::On);
    let iothreads = spawn_iothreads(cli, &sandbox)?;
    let device = make_device(cli, &node, engine, &iothreads, &sandbox)?;
    let stats = device.stats().to_vec();
    let disk = device.state().name.clone();
    tracing::info!(
        disk, socket = server.name(), bytes = node.size(), queues = cli.num_queues,
        iothreads = cli.iothreads, %engine, "serving"
    );
    readiness.announce();
    let report = Report {
        engine,
        queues: &stats,
    };
    let end = serve(signals, server, device, &report, &sandbox)?;
    if cli.stats {
        eprint!("{report}");
    }
    if !end.finished {
        leave(&disk, &end, cli.socket_path.as_deref());
    }
    drop(iothreads);
    tracing::info!(disk, reason = end.reason, "stopped");
    check_flushes(&node)
}

/// A process that has lost writes does not end as if nothing had happened.
fn check_flushes(node: &BlockNode) -> anyhow::Result<()> {
    match node.last_flush_failed() {
        false => Ok(()),
        true => Err(anyhow!(
            "a flush of {0} has failed, so writes may be lost: mend what is below it, run 'sync {0}' until it reports no \
             error, then check the guest's file systems",
            node.path().display()
        )),
    }
}

/// Ends the process, whatever its threads do: joining them could take for ever.
///
/// That is a failure: the requests are lost unless the frontend keeps track of them and finds a successor.
fn leave(disk: &str, end: &End, socket: Option<&Path>) -> ! {
    tracing::error!(
        disk,
        reason = end.reason,
        "stopped, but requests are still in flight: leaving without them"
    );
    if let Some(path) = socket {
        // Its owner is the control thread, which still waits.
        let _ = std::fs::remove_file(path);
    }
    std::process::exit(1);
}

/// Makes the best of the limits that there are.
fn check_limits(cli: &Cli) {
    limits::survive_file_size_limit();
    let needed = limits::open_files_needed(cli.num_queues, cli.iothreads);
    match limits::raise_open_files() {
        Ok(limit) if limit >= needed => {}
        Ok(limit) => tracing::warn!(
            limit,
            needed,
            "the limit of open files is too low for so many queues: raise it (ulimit -n, LimitNOFILE=)"
        ),
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
    }
}

fn open_node(cli: &Cli) -> anyhow::Result<Arc<BlockNode>> {
    if let Some(size) = cli.null {
        return Ok(Arc::new(match cli.null_latency_ns {
            None => BlockNode::null(size),
            Some(latency) => BlockNode::null_aio(size, Duration::from_nanos(latency)),
        }));
    }
    let path = cli.blk_file.clone().context("--blk-file is missing")?;
    check_format(cli, &path)?;
    let options = OpenOptions {
        path,
        read_only: cli.read_only,
        direct: cli.direct,
        logical_block_size: cli.logical_block_size,
    };
    Ok(Arc::new(BlockNode::open(&options)?))
}

/// Refuses an image that a guest would see the inside of.
fn check_format(cli: &Cli, path: &Path) -> anyhow::Result<()> {
    // The source of a migration has looked. Here it would fill the page cache with what the source still changes.
    if cli.format.is_some() || cli.incoming {
        return Ok(());
    }
    let Some(format) = foreign_format(path) else {
        return Ok(());
    };
    let path = path.display();
    Err(anyhow!(
        "{path} looks like a {format} image, and images are served as they are, byte by byte: convert it ('qemu-img \
         convert -O raw {path} {path}.raw'), serve it with qemu-storage-daemon, or add --format raw if it is a raw \
         disk whose guest has written that"
    ))
}

/// Finds out early what cannot work, before there is a socket.
fn check_use(cli: &Cli, node: &BlockNode) -> anyhow::Result<()> {
    node.plan(cli.aio.into())?;
    if !cli.incoming {
        node.lock().map_err(|error| lock_error(error, node.path()))?;
    }
    Ok(())
}

fn find_account(cli: &Cli) -> anyhow::Result<Option<Account>> {
    let Some(user) = &cli.user else { return Ok(None) };
    let account = Account::find(user).map_err(|error| account_error("--user", error))?;
    account.check().context("--user")?;
    Ok(Some(account))
}

fn account_error(option: &'static str, error: account::Error) -> anyhow::Error {
    match error {
        account::Error::Unknown { .. } | account::Error::NoGroup(_) => {
            WrongOption(format!("{option}: {error}")).into()
        }
        _ => anyhow!(error).context(option),
    }
}

/// The socket that this process was started with, unless it is to make one.
fn handed_over(cli: &Cli) -> anyhow::Result<Option<Server>> {
    match (&cli.socket_path, cli.fd) {
        (Some(_), _) => Ok(None),
        (None, Some(fd)) => {
            let wrong = |error: &dyn std::fmt::Display| WrongOption(format!("--fd: {error}"));
            // SAFETY: nothing was opened yet, so it was handed over, and is given by number.
            let fd = unsafe { inherited::by_number(fd) }.map_err(|error| wrong(&error))?;
            Ok(Some(Server::from_fd(fd).map_err(|error| wrong(&error))?))
        }
        (None, None) => {
            // SAFETY: nothing was opened yet.
            let fd = unsafe { inherited::from_service_manager() }.context("LISTEN_FDS")?;
            let fd = fd.ok_or_else(no_socket)?;
            if cli.socket_mode.is_some() || cli.socket_group.is_some() {
                let told = "--socket-mode and --socket-group are for --socket-path: the socket was handed over \
                            (LISTEN_FDS), and its unit says who may connect (SocketMode=, SocketGroup=)";
                return Err(WrongOption(told.to_owned()).into());
            }
            Ok(Some(Server::from_fd(fd).context("LISTEN_FDS")?))
        }
    }
}

/// Neither an option nor a service manager says which socket to serve.
fn no_socket() -> WrongOption {
    let found = match std::env::var("LISTEN_FDS") {
        Ok(number) => {
            let pid = std::env::var("LISTEN_PID").unwrap_or_default();
            let own = std::process::id();
            format!(" (LISTEN_FDS={number} LISTEN_PID={pid} hands none to process {own})")
        }
        Err(_) => String::new(),
    };
    WrongOption(format!(
        "--socket-path missing: name the socket to listen on, e.g. --socket-path disk.sock{found}"
    ))
}

fn bind(cli: &Cli, account: Option<&Account>) -> anyhow::Result<Server> {
    let group = cli.socket_group.as_deref().map(find_group).transpose();
    let group = group.map_err(|error| account_error("--socket-group", error))?;
    let access = SocketAccess {
        mode: cli.socket_mode.unwrap_or(SocketAccess::default().mode),
        owner: account.map(Account::uid),
        group: group.or(account.map(Account::gid)),
    };
    let path = cli.socket_path.as_deref().context("--socket-path is missing")?;
    Ok(Server::bind(path, &access)?)
}

fn confine_process(cli: &Cli, account: Option<&Account>) -> anyhow::Result<Sandbox> {
    let socket = cli.socket_path.as_deref();
    Ok(Sandbox::new(cli.sandbox.into(), Keep { socket, account })?)
}

/// Makes the disk, with all that its IOThreads need, and confines them.
fn make_device(
    cli: &Cli,
    node: &Arc<BlockNode>,
    engine: Plan,
    iothreads: &[IoThread],
    sandbox: &Sandbox,
) -> anyhow::Result<BlkDevice> {
    let params = device_params(cli, node, engine)?;
    let mut device = BlkDevice::new(Arc::clone(node), params, iothreads)?;
    // Before anything is executed: workers inherit the filters of their IOThread.
    for iothread in iothreads {
        confine(iothread, sandbox)?;
    }
    if !cli.incoming {
        let locked = device.activate(NodeControl::run);
        locked.map_err(|error| take_error(error, node.path()))?;
    }
    Ok(device)
}

/// Puts the sandbox over an IOThread, whose queues have all that they need by now.
fn confine(iothread: &IoThread, sandbox: &Sandbox) -> anyhow::Result<()> {
    let (sandbox, (reply, entered)) = (sandbox.clone(), mpsc::channel());
    let enter = move |_: &AioContext| {
        // The main thread waits for it.
        let _ = reply.send(sandbox.enter(ThreadKind::IoThread));
    };
    iothread.handle().run_on_context(enter)?;
    Ok(entered.recv().context("an IOThread has ended")??)
}

fn take_error(error: TakeError, image: &Path) -> anyhow::Error {
    match error {
        TakeError::Lock(error) => lock_error(error, image),
        error => error.into(),
    }
}

fn lock_error(error: LockError, image: &Path) -> anyhow::Error {
    let LockError::InUse { .. } = error else {
        return error.into();
    };
    let who = match holders(image) {
        Some(processes) => format!("it is open in {processes}"),
        None => {
            let image = image.display();
            format!(
                "most likely a virtual machine, qemu-img or another vhost-user-blk ('fuser -v {image}' as root shows it)"
            )
        }
    };
    anyhow!(
        "{error}; {who}: end that first, or use --incoming if it is the source of a live migration to here"
    )
}

fn spawn_iothreads(cli: &Cli, sandbox: &Sandbox) -> anyhow::Result<Vec<IoThread>> {
    let workers = sandbox.clone();
    let params = IoThreadParams {
        config: IoThreadConfig {
            poll_max: Duration::from_nanos(cli.poll_max_ns),
        },
        thread_pool: ThreadPoolParams {
            min_threads: cli.thread_pool_min.into(),
            max_threads: cli.thread_pool_max.into(),
        },
        spawner: Spawner::new(move |name, body| workers.spawn(ThreadKind::Worker, name, body)),
    };
    let spawn = |n| Ok(IoThread::spawn(&format!("iothread{n}"), &params)?);
    let iothreads = (0..cli.iothreads)
        .map(spawn)
        .collect::<anyhow::Result<Vec<_>>>()?;
    for (iothread, cpus) in cli.cpus().map_err(|e| anyhow!(e))? {
        pin_thread(iothreads[usize::from(*iothread)].thread_id(), cpus)
            .with_context(|| {
                format!("--iothread-cpus: IOThread {iothread} cannot run on CPUs {cpus:?} (do they exist, are they online, may this process use them?)")
            })?;
    }
    Ok(iothreads)
}

fn device_params(cli: &Cli, node: &BlockNode, engine: Plan) -> anyhow::Result<DeviceParams> {
    Ok(DeviceParams {
        name: node.path().display().to_string(),
        engine,
        serial: cli.serial,
        num_queues: cli.num_queues,
        queue_size: cli.queue_size,
        batch_notifications: cli.notify == Notify::Batch,
        trouble: cli.trouble(),
        faults: faults(cli),
        throttle: None,
        queue_iothreads: cli.queue_iothreads().map_err(|e| anyhow!(e))?,
    })
}

/// Faults to be injected.
fn faults(cli: &Cli) -> Option<Arc<Faults>> {
    (!cli.inject.is_empty()).then(|| Arc::new(Faults::new(&cli.inject)))
}

/// Says, before anybody can connect, that faults are not to be taken for real ones.
fn announce_faults(cli: &Cli) {
    for rule in &cli.inject {
        tracing::warn!(%rule, "FAULT INJECTION IS ON: this disk will fail on purpose, and may lose data (--inject)");
    }
}

/// How serving has ended.
struct End {
    /// No request is in flight.
    finished: bool,
    /// For the log.
    reason: &'static str,
}

/// Runs the control thread until a signal or the end of a connected socket.
fn serve(
    mut signals: Signals,
    server: Server,
    mut device: BlkDevice,
    report: &Report<'_>,
    sandbox: &Sandbox,
) -> anyhow::Result<End> {
    let (stopper, resizer) = (server.stopper(), server.resizer(&device));
    let waker = signals.handle();
    let (done, finished) = mpsc::channel();
    let control = move || {
        let _waker = CloseOnDrop(waker);
        server.run(&mut device);
        drop(device);
        // The main thread may have given up already.
        let _ = done.send(());
    };
    sandbox
        .spawn(ThreadKind::Control, "control".to_owned(), control)
        .context("cannot create the control thread")?;
    let entered = sandbox.enter(ThreadKind::Main);
    let reason = match entered {
        Ok(()) => obey(&mut signals, &resizer, report),
        Err(_) => "the sandbox",
    };
    stopper.stop();
    // Also in front of an error: the control thread has the socket's file to remove.
    let ended = finished.recv_timeout(SHUTDOWN_TIME);
    entered?;
    let finished = match ended {
        Ok(()) => true,
        Err(RecvTimeoutError::Timeout) => false,
        Err(RecvTimeoutError::Disconnected) => return Err(anyhow!("the control thread has panicked")),
    };
    Ok(End { finished, reason })
}

/// Does what signals ask for, until one asks for the end or the control thread has ended; returns which.
fn obey(signals: &mut Signals, resizer: &Resizer, report: &Report<'_>) -> &'static str {
    for signal in signals {
        match signal {
            SIGUSR1 => eprint!("{report}"),
            SIGHUP => {
                if let Err(error) = resizer.refresh() {
                    tracing::error!(%error, "size of the image cannot be looked at");
                }
            }
            other => return signal_name(other).unwrap_or("signal"),
        }
    }
    "the frontend left"
}

/// Ends the wait for signals when the control thread ends, also by a panic.
struct CloseOnDrop(signal_hook::iterator::Handle);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}
