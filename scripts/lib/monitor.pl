# Asks QEMU's monitor, and prints the answers.
#
#   perl monitor.pl SOCKET COMMAND...
#
# SOCKET is one of QMP. A COMMAND is one of the human monitor, such as "info status". Gives up after five seconds without
# an answer.
use strict;
use warnings;
use IO::Select;
use IO::Socket::UNIX;
use Socket;

my ($path, @commands) = @ARGV;
my $monitor = IO::Socket::UNIX->new(Peer => $path, Type => SOCK_STREAM) or die "no connection to QEMU's monitor: $!\n";
my $received = '';

# Returns the next line from QEMU.
sub next_line {
    while (1) {
        return $1 if $received =~ s/^(.*?)\r?\n//;
        IO::Select->new($monitor)->can_read(5) or die "QEMU's monitor does not answer\n";
        $monitor->sysread($received, 1 << 16, length $received) or die "QEMU has ended\n";
    }
}

# Sends a line, and returns the answer to it. Events come in between.
sub ask {
    my ($line) = @_;
    $monitor->syswrite("$line\n");
    while (1) {
        my $answer = next_line();
        return $answer if $answer =~ /^\{"(return|error)"/;
    }
}

next_line(); # the greeting
ask('{"execute": "qmp_capabilities"}');
for my $command (@commands) {
    my $answer = ask(qq({"execute": "human-monitor-command", "arguments": {"command-line": "$command"}}));
    $answer =~ s/^\{"return": "(.*)"\}/$1/;
    $answer =~ s/\\r//g;
    $answer =~ s/\\n/\n/g;
    $answer =~ s/\\t/\t/g;
    $answer =~ s/\\"/"/g;
    $answer =~ s/\n*\z//;
    print "$command:\n$answer\n";
}
