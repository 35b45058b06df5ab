# Runs under systemd, with the package, libvirt and QEMU installed: see scripts/test-libvirt. Arguments: the directory of the
# test guest, and a directory with the root of another host and the sockets of its libvirt.
use strict;
use warnings;
use IO::Select;
use IO::Socket::UNIX;
use Socket;

# Longest wait in seconds. The guest is emulated, so it is slow.
use constant DEADLINE => 240;
use constant DOMAIN => 'guest';

$| = 1;
my ($guest, $other) = @ARGV;
my $work = '/var/lib/libvirt/qemu';
my $disk0 = 'vhost-user-blk@disk0.service';
my $disk1 = 'vhost-user-blk@disk1.service';
my ($serial, $select);

sub step { print "==> @_\n" }

sub fail {
    print `systemctl --no-pager --full status $disk0 $disk1 libvirtd 2>&1 | head -n 80`;
    print `tail -n 20 /var/log/libvirt/qemu/@{[DOMAIN]}.log 2>&1`;
    die @_, "\n";
}

# Runs a command of the host. Returns its output.
sub host {
    my @command = @_;
    open my $pipe, '-|', @command or die "@command: $!\n";
    my $output = do { local $/; <$pipe> } // '';
    close $pipe or fail "@command: status $?: $output";
    return $output;
}

sub active {
    my ($unit) = @_;
    return `systemctl is-active $unit` eq "active\n";
}

sub wait_for {
    my ($what, $ready) = @_;
    my $until = time + DEADLINE;
    until ($ready->()) {
        time < $until or fail "waited in vain for $what";
        select undef, undef, undef, 0.2;
    }
}

# Reads from the guest's second serial port up to a pattern. Returns what came.
sub until_seen {
    my ($pattern, $what) = @_;
    my $text = '';
    my $until = time + DEADLINE;
    until ($text =~ $pattern) {
        time < $until or fail "no answer from the guest to $what: $text";
        next unless $select->can_read(1);
        $serial->sysread($text, 4096, length $text) or fail "the guest has gone: $what: $text";
    }
    return $text;
}

sub attach_serial {
    my ($root) = @_;
    my $socket = "$root$work/commands";
    wait_for('the serial port', sub { $serial = IO::Socket::UNIX->new(Peer => $socket, Type => SOCK_STREAM) });
    $select = IO::Select->new($serial);
}

# Runs a command in the guest. Returns its output.
sub run {
    my ($command) = @_;
    $serial->syswrite("$command\n");
    my $text = until_seen(qr/\036\d+\n/, $command);
    my ($output, $status) = $text =~ /^(.*)\036(\d+)\n$/s;
    $status == 0 or fail "in the guest: $command: status $status: $output";
    return $output;
}

sub start_fio {
    my ($seconds) = @_;
    run('rm -f /tmp/status; '
        . '(fio --name=v --filename=/dev/vda --ioengine=libaio --direct=1 --iodepth=16 --bs=4k --rw=randwrite --size=32m '
        . "--time_based --runtime=$seconds --verify=crc32c --verify_backlog=64 --do_verify=1 --output=/tmp/fio "
        . '>/tmp/out 2>&1; echo $? >/tmp/status) &');
}

# Waits for fio, which must have found no error.
sub end_fio {
    wait_for('fio', sub { run('cat /tmp/status 2>/dev/null || true') =~ /\d/ });
    my $status = run('cat /tmp/status');
    $status =~ /^0$/m or fail "fio: $status", run('cat /tmp/out /tmp/fio');
    print run('grep -E "err=|issued" /tmp/fio');
}

# Moves the guest from one libvirt to another.
sub migrate {
    my ($from, $to, $port, @how) = @_;
    host('virsh', '--quiet', '--connect', $from, qw(migrate --unsafe), @how, DOMAIN, $to, "tcp://127.0.0.1:$port");
}

sub disk_xml {
    my ($name, $target) = @_;
    return "<disk type='vhostuser' device='disk'><driver name='qemu' type='raw'/>"
        . "<source type='unix' path='/run/vhost-user-blk/$name.sock'><reconnect enabled='yes' timeout='1'/></source>"
        . "<target dev='$target' bus='virtio'/></disk>";
}

sub write_file {
    my ($path, $text) = @_;
    open my $file, '>', $path or die "$path: $!\n";
    print $file $text;
    close $file or die "$path: $!\n";
}

my $ports = "<controller type='pci' model='pcie-root-port'/>" x 4;
write_file('/var/tmp/guest.xml', "<domain type='qemu'><name>@{[DOMAIN]}</name><memory unit='MiB'>768</memory>"
    . "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking><vcpu current='1'>2</vcpu>"
    . "<os><type arch='x86_64' machine='q35'>hvm</type><kernel>$guest/vmlinuz</kernel>"
    . "<initrd>$guest/initrd-fio.cpio</initrd><cmdline>$ENV{GUEST_CMDLINE}</cmdline></os><features><acpi/></features>"
    . "<cpu mode='maximum'/><devices>" . disk_xml('disk0', 'vda') . "<controller type='pci' model='pcie-root'/>$ports"
    . "<serial type='null'/><serial type='unix'><source mode='bind' path='$work/commands'/></serial>"
    . "<memballoon model='none'/></devices></domain>\n");
write_file('/var/tmp/disk1.xml', disk_xml('disk1', 'vdb'));

step 'start: the hook starts the daemon';
host(qw(systemctl start libvirtd.service));
active($disk0) and fail 'the daemon runs already';
host(qw(virsh --quiet create /var/tmp/guest.xml));
active($disk0) or fail 'the hook has not started the daemon';
attach_serial('');
until_seen(qr/\036ready\n/, 'the boot');

step 'fio writes and verifies in the guest';
start_fio(25);

for my $round (1 .. 3) {
    step "upgrade $round: another process takes over";
    my $old = host(qw(systemctl show --property MainPID --value), $disk0);
    host(qw(systemctl reload), $disk0);
    my $new = host(qw(systemctl show --property MainPID --value), $disk0);
    $old ne $new or fail 'no other process serves';
    run('true');
}

step 'reconnect: the daemon is killed';
host(qw(systemctl kill --signal KILL --kill-who main), $disk0);
wait_for('the service', sub { active($disk0) });
end_fio();

step 'hot plug';
host(qw(systemctl start), $disk1);
host(qw(virsh --quiet attach-device), DOMAIN, '/var/tmp/disk1.xml');
run('until [ -b /dev/vdb ]; do sleep 0.2; done; dd if=/dev/vda of=/dev/vdb bs=1M count=8 2>/dev/null; sync; '
    . 'cmp -n 8388608 /dev/vda /dev/vdb');
host(qw(virsh --quiet detach-device), DOMAIN, '/var/tmp/disk1.xml');
run('while [ -b /dev/vdb ]; do sleep 0.2; done');
host(qw(systemctl stop), $disk1);

step 'save and restore';
my $sum = run('md5sum </dev/vda');
run('echo here >/tmp/before');
host(qw(virsh --quiet save), DOMAIN, '/var/tmp/saved');
wait_for('the hook to stop the daemon', sub { !active($disk0) });
host(qw(virsh --quiet restore /var/tmp/saved));
attach_serial('');
run('cat /tmp/before') eq "here\n" or fail 'another guest was restored';
run('md5sum </dev/vda') eq $sum or fail 'the disk has changed';

# Before 9.0, an emulated guest loses memory that it writes during its migration, so it has to stop.
my ($qemu) = host(qw(virsh version)) =~ /hypervisor: QEMU (\d+)\./;
my @how = $qemu >= 9 ? '--live' : ();
step "migration to the libvirt of another host, and back @how";
my ($here, $there) = ('qemu:///system', "qemu+unix:///system?socket=$other/libvirt/libvirt-sock");
start_fio(20);
migrate($here, $there, 49200, @how);
wait_for('the hook to stop the daemon here', sub { !active($disk0) });
attach_serial("$other/root");
run('cat /tmp/before') eq "here\n" or fail 'another guest has arrived';
migrate($there, $here, 49201, @how);
active($disk0) or fail 'the hook has not started the daemon';
attach_serial('');
end_fio();

step 'end: the hook stops the daemon';
host(qw(virsh --quiet destroy), DOMAIN);
wait_for('the hook to stop the daemon', sub { !active($disk0) });
print "libvirt ", host(qw(virsh --version));
