# Runs under systemd, with the package installed: see scripts/test-systemd.
use strict;
use warnings;
require './scripts/lib/frontend.pl';

# A net against hanging.
use constant DEADLINE => 60;

$| = 1;

# Runs systemctl. Returns whether it succeeds.
sub systemctl { return system('systemctl', '--no-pager', @_) == 0 }

sub property {
    my ($unit, $name) = @_;
    my $value = `systemctl show --property $name --value $unit`;
    chomp $value;
    return $value;
}

sub fail {
    my ($unit, @what) = @_;
    system('systemctl', '--no-pager', '--full', 'status', $unit);
    die @what, "\n";
}

sub served {
    my ($unit, $frontend, $when) = @_;
    $frontend or fail $unit, "$when: no connection: $!";
    my ($features, $why) = get_features($frontend, DEADLINE);
    $features or fail $unit, "$when: $why";
    printf "%s: %s: process %d, %s\n", $unit, $when, property($unit, 'MainPID'), property($unit, 'StatusText');
}

# Reloads a unit whose frontend stays connected. Returns the process that serves it then.
sub reload {
    my ($unit, $frontend, $old) = @_;
    systemctl('reload', $unit) or fail $unit, 'cannot be reloaded';
    my $new = property($unit, 'MainPID');
    $new && $new != $old or fail $unit, "process $new serves, and not another one than $old";
    property($unit, 'ActiveState') eq 'active' or fail $unit, 'is not active';
    -e "/proc/$old" and fail $unit, "process $old has not ended";
    served($unit, $frontend, 'reloaded');
    return $new;
}

# Waits until systemd has started another process than $old. Returns it.
sub restarted {
    my ($unit, $old) = @_;
    my $until = time + DEADLINE;
    my $next = 0;
    until ($next && $next != $old && property($unit, 'ActiveState') eq 'active') {
        time < $until or fail $unit, 'was not restarted';
        select undef, undef, undef, 0.1;
        $next = property($unit, 'MainPID');
    }
    return $next;
}

# Returns whether a process that takes over has stopped itself.
sub is_stopped {
    return grep { -r && `cat $_ 2>/dev/null` =~ /^\d+ \(vhost-user-blk\.\) T/ } glob '/proc/[0-9]*/stat';
}

# Kills the process that serves a unit while another one takes over. Returns the process that serves it then.
sub kill_during_reload {
    my ($unit, $path, $old) = @_;
    my ($program, $right) = ('/usr/bin/vhost-user-blk', '/usr/bin/vhost-user-blk.right');
    rename $program, $right or die "rename: $!\n";
    open my $wrapper, '>', $program or die "$program: $!\n";
    print {$wrapper} "#!/bin/sh\nexec $right --fail-take-over early \"\$@\"\n";
    close $wrapper or die "$program: $!\n";
    chmod 0755, $program or die "$program: $!\n";
    my $reload = fork // die "fork: $!\n";
    exec 'systemctl', 'reload', $unit or die "systemctl: $!\n" if !$reload;
    my $until = time + DEADLINE;
    until (is_stopped) {
        time < $until or fail $unit, 'nobody takes over';
        select undef, undef, undef, 0.1;
    }
    kill KILL => $old;
    waitpid $reload, 0;
    my $next = restarted($unit, $old);
    rename $right, $program or die "rename: $!\n";
    served($unit, frontend($path), 'restarted after SIGKILL during a reload');
    is_stopped and fail $unit, 'the process that was taking over is still there';
    return $next;
}

sub test {
    my ($unit, $path, $start) = @_;
    $start->();
    my $frontend = frontend($path);
    served($unit, $frontend, 'started');
    my $first = property($unit, 'MainPID');
    my $third = reload($unit, $frontend, reload($unit, $frontend, $first));

    # Longer than the watchdog waits.
    sleep 5;
    property($unit, 'MainPID') == $third or fail $unit, 'was restarted by the watchdog';
    served($unit, $frontend, 'watched');

    # A program that cannot take over.
    rename '/usr/bin/vhost-user-blk', '/usr/bin/vhost-user-blk.right' or die "rename: $!\n";
    symlink '/bin/false', '/usr/bin/vhost-user-blk' or die "symlink: $!\n";
    systemctl('reload', $unit) and fail $unit, 'was reloaded with a wrong program';
    property($unit, 'MainPID') == $third or fail $unit, 'does not go on with the old process';
    served($unit, $frontend, 'reloaded in vain');
    rename '/usr/bin/vhost-user-blk.right', '/usr/bin/vhost-user-blk' or die "rename: $!\n";

    kill KILL => $third;
    my $next = restarted($unit, $third);
    served($unit, frontend($path), 'restarted after SIGKILL');
    $next = reload($unit, frontend($path), $next);
    $next = kill_during_reload($unit, $path, $next);
    reload($unit, frontend($path), $next);

    systemctl('stop', $unit) or fail $unit, 'cannot be stopped';
    property($unit, 'ActiveState') eq 'inactive' && property($unit, 'Result') eq 'success'
        or fail $unit, 'has not ended well';
    print "$unit: stopped\n";
}

test('vhost-user-blk@disk0.service', '/run/vhost-user-blk/disk0.sock',
    sub { systemctl('start', 'vhost-user-blk@disk0.socket') or die "no socket\n" });
test('vhost-user-blk.service', '/run/vhost-user-blk/disk1.sock',
    sub { systemctl('start', 'vhost-user-blk.service') or fail 'vhost-user-blk.service', 'cannot be started' });
