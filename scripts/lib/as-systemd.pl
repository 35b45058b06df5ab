# Starts a service of the installed units as systemd does, for systems without it (Debian's smallest has Perl only):
#
#   perl as-systemd.pl vhost-user-blk@NAME COMMAND...
#
# The service gets the socket of its .socket unit (LISTEN_FDS, LISTEN_FDNAMES), and must say READY=1 to NOTIFY_SOCKET. A
# frontend then asks for its features, before and after COMMAND, and after a reload, in which another process takes over.
# At last the service gets SIGTERM, and must end.
use strict;
use warnings;
use Fcntl;
use IO::Select;
use IO::Socket::UNIX;
use POSIX ();
use Socket;
require './scripts/lib/frontend.pl';

# A net against hanging.
use constant DEADLINE => 120;

my ($unit, @command) = @ARGV;
my ($template, $name) = split /(?<=@)/, $unit;

# Returns the values of a key of a unit file.
sub values_of {
    my ($file, $key) = @_;
    open my $unit_file, '<', "/usr/lib/systemd/system/$file" or die "$file: $!\n";
    return map { /^$key=(.*)/ ? $1 =~ s/%i/$name/gr : () } <$unit_file>;
}

# Returns the only value of a key of a unit file.
sub value {
    my ($file, $key) = @_;
    my @values = values_of($file, $key);
    @values == 1 or die "$file has " . @values . " values of $key\n";
    return $values[0];
}

# Returns the words of a command line, with variables from the EnvironmentFile: ${WORD} is one word, $WORDS are several.
sub words {
    my ($line) = @_;
    my %variables;
    my $path = value("$template.service", 'EnvironmentFile');
    open my $conf, '<', $path or die "$path: $!\n";
    /^(\w+)="?(.*?)"?$/ and $variables{$1} = $2 while <$conf>;
    return map {
        /^\$\{(\w+)\}$/ ? $variables{$1} : /^\$(\w+)$/ ? split(' ', $variables{$1}) : $_
    } split ' ', $line;
}

sub listener {
    my ($path, $type) = @_;
    return IO::Socket::UNIX->new(Local => $path, Type => $type, $type == SOCK_STREAM ? (Listen => 8) : ())
        // die "$path: $!\n";
}

my $path = value("$template.socket", 'ListenStream');
my $directory = $path =~ s{/[^/]*$}{}r;
mkdir $directory;
my $own = '/run/' . value("$template.service", 'RuntimeDirectory');
mkdir $own;
my $socket = listener($path, SOCK_STREAM);
my $messages = "/run/as-systemd.$$";
my $notify = listener($messages, SOCK_DGRAM);
my @line = words(value("$template.service", 'ExecStart'));

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

# Waits for a message that contains a line which begins so. Returns the message.
sub expect_message {
    my ($line) = @_;
    my $until = time + DEADLINE;
    while (time < $until) {
        IO::Select->new($notify)->can_read(1) or next;
        $notify->recv(my $message, 4096) // end "recv: $!";
        print "the service says: $message\n";
        return $message if $message =~ /^\Q$line\E/m;
    }
    end "the service did not say $line";
}

# Checks that a connection is served.
sub served {
    my ($frontend, $when) = @_;
    $frontend or end "$when: $path: $!";
    my ($features, $why) = get_features($frontend, DEADLINE);
    $features or end "$when: $why";
    printf "%s: features %#x\n", $when, $features;
}

expect_message('READY=1');
my $frontend = frontend($path);
served($frontend, 'started');
system(@command) == 0 or end "@command: status $?";
served($frontend, 'the same connection afterwards');

# The last command of a reload makes the installed version take over.
my ($take_over) = grep { /--take-over/ } values_of("$template.service", 'ExecReload');
system(words($take_over)) == 0 or end "$take_over: status $?";
my ($new) = expect_message('MAINPID=') =~ /MAINPID=(\d+)/;
expect_message('READY=1');
waitpid $service, 0;
my $status = $?;
$service = $new;
$status == 0 or end "the old process ended with status $status";
served($frontend, 'the same connection with the new process');
close $frontend;
served(frontend($path), 'a new connection');

kill TERM => $service;
expect_message('STOPPING=1');
# It is not a child of this process.
my $until = time + DEADLINE;
select undef, undef, undef, 0.05
    while kill(0 => $service) && time < $until;
kill(0 => $service) and end "the service has not ended";
# As systemd does with the directory of a service.
unlink $path, $messages, glob "$own/*";
rmdir for $directory, $own;
