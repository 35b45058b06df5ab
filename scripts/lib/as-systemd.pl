# Starts a service of the installed units as systemd does, for systems without it (Debian's smallest has Perl only):
#
#   perl as-systemd.pl vhost-user-blk@NAME COMMAND...
#
# The service gets the socket of its .socket unit (LISTEN_FDS, LISTEN_FDNAMES), and must say READY=1 to NOTIFY_SOCKET. A
# frontend then asks for its features, before and after COMMAND, on the same connection and on a new one. At last the
# service gets SIGTERM, and must end with status 0.
use strict;
use warnings;
use Fcntl;
use IO::Select;
use IO::Socket::UNIX;
use POSIX ();
use Socket;

# A net against hanging.
use constant DEADLINE => 120;

my ($unit, @command) = @ARGV;
my ($template, $name) = split /(?<=@)/, $unit;

# Returns the value of a key of a unit file.
sub value {
    my ($file, $key) = @_;
    open my $unit_file, '<', "/usr/lib/systemd/system/$file" or die "$file: $!\n";
    my @values = map { /^$key=(.*)/ ? $1 : () } <$unit_file>;
    @values == 1 or die "$file has " . @values . " values of $key\n";
    return $values[0] =~ s/%i/$name/gr;
}

# Returns the words of the command line, with variables from the EnvironmentFile: ${WORD} is one word, $WORDS are several.
sub command_line {
    my %variables;
    my $path = value("$template.service", 'EnvironmentFile');
    open my $conf, '<', $path or die "$path: $!\n";
    /^(\w+)="?(.*?)"?$/ and $variables{$1} = $2 while <$conf>;
    return map {
        /^\$\{(\w+)\}$/ ? $variables{$1} : /^\$(\w+)$/ ? split(' ', $variables{$1}) : $_
    } split ' ', value("$template.service", 'ExecStart');
}

sub listener {
    my ($path, $type) = @_;
    return IO::Socket::UNIX->new(Local => $path, Type => $type, $type == SOCK_STREAM ? (Listen => 8) : ())
        // die "$path: $!\n";
}

my $path = value("$template.socket", 'ListenStream');
my $directory = $path =~ s{/[^/]*$}{}r;
mkdir $directory;
my $socket = listener($path, SOCK_STREAM);
my $messages = "/run/as-systemd.$$";
my $notify = listener($messages, SOCK_DGRAM);
my @line = command_line();

my $service = fork // die "fork: $!\n";
if (!$service) {
    # Above the number that the socket gets.
    my $spare = fcntl($socket, F_DUPFD, 10) or die "F_DUPFD: $!\n";
    POSIX::dup2($spare, 3) // die "dup2: $!\n";
    POSIX::close($spare);
    @ENV{qw(LISTEN_FDS LISTEN_FDNAMES LISTEN_PID NOTIFY_SOCKET)} = (1, $name, $$, $messages);
    exec @line or die "@line: $!\n";
}
# The service has it now.
close $socket;

sub end {
    kill KILL => $service;
    unlink $path, $messages;
    die @_, "\n";
}

# Waits for a message that contains a line.
sub expect_message {
    my ($line) = @_;
    my $until = time + DEADLINE;
    while (time < $until) {
        IO::Select->new($notify)->can_read(1) or next;
        $notify->recv(my $message, 4096) // end "recv: $!";
        print "the service says: $message\n";
        return if $message =~ /^\Q$line\E$/m;
    }
    end "the service did not say $line";
}

# VHOST_USER_GET_FEATURES: the request, the flags of version 1, no payload.
sub get_features {
    my ($frontend, $when) = @_;
    $frontend->syswrite(pack 'L3', 1, 1, 0) // end "$when: $!";
    my $reply = '';
    while (length $reply < 20) {
        IO::Select->new($frontend)->can_read(DEADLINE) or end "$when: no answer";
        $frontend->sysread($reply, 20 - length $reply, length $reply) or end "$when: the connection ended";
    }
    my ($request, $flags, $size, $features) = unpack 'L3 Q', $reply;
    # A reply; VIRTIO_F_VERSION_1.
    $request == 1 && $flags == 5 && $size == 8 && $features >> 32 & 1 or end "$when: a wrong answer";
    printf "%s: features %#x\n", $when, $features;
}

sub frontend { IO::Socket::UNIX->new(Peer => $path, Type => SOCK_STREAM) // end "$path: $!" }

expect_message('READY=1');
my $frontend = frontend();
get_features($frontend, 'started');
system(@command) == 0 or end "@command: status $?";
get_features($frontend, 'the same connection afterwards');
close $frontend;
get_features(frontend(), 'a new connection afterwards');

kill TERM => $service;
expect_message('STOPPING=1');
waitpid $service, 0;
my $status = $?;
unlink $path, $messages;
rmdir $directory;
$status == 0 or die "the service ended with status $status\n";
