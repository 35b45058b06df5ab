# A frontend that asks for features, for scripts in systems where only Perl is installed.
use strict;
use warnings;
use IO::Select;
use IO::Socket::UNIX;
use Socket;

# Connects to a socket.
sub frontend {
    my ($path) = @_;
    return IO::Socket::UNIX->new(Peer => $path, Type => SOCK_STREAM);
}

# VHOST_USER_GET_FEATURES: the request, the flags of version 1, no payload. Returns the features, or nothing and the reason.
sub get_features {
    my ($frontend, $seconds) = @_;
    $frontend->syswrite(pack 'L3', 1, 1, 0) // return (undef, "$!");
    my $reply = '';
    while (length $reply < 20) {
        IO::Select->new($frontend)->can_read($seconds) or return (undef, 'no answer');
        $frontend->sysread($reply, 20 - length $reply, length $reply) or return (undef, 'the connection ended');
    }
    my ($request, $flags, $size, $features) = unpack 'L3 Q', $reply;
    # A reply; VIRTIO_F_VERSION_1.
    $request == 1 && $flags == 5 && $size == 8 && $features >> 32 & 1 or return (undef, 'a wrong answer');
    return ($features, '');
}

1;
