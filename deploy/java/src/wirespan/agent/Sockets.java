// SPDX-License-Identifier: Apache-2.0

package wirespan.agent;

import java.io.FileDescriptor;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.lang.ref.WeakReference;
import java.net.SocketImpl;
import java.nio.channels.SocketChannel;
import java.util.Arrays;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * Connections, by their descriptors: who reads a request works for it, and who reads an answer
 * works for whom the request was sent.
 */
public final class Sockets {
    private static final class Connection {
        final boolean serves;
        boolean written; // since something was read last
        WeakReference<SocketChannel> owned; // for whom the next request is, was said of this one
        boolean shared; // sent to for several at once: whose an answer is can't be told
        int number; // of the request served; or of that for which a request was sent

        Connection(boolean serves) {
            this.serves = serves;
            written = serves;
        }
    }

    private static final VarHandle DESCRIPTOR;
    private static final VarHandle SOCKET;
    private static final VarHandle CHANNEL;
    private static final AtomicInteger LAST = new AtomicInteger();
    private static volatile Connection[] connections = new Connection[1024];

    static {
        try {
            MethodHandles.Lookup us = MethodHandles.lookup();
            DESCRIPTOR =
                    MethodHandles.privateLookupIn(FileDescriptor.class, us)
                            .findVarHandle(FileDescriptor.class, "fd", int.class);
            SOCKET =
                    MethodHandles.privateLookupIn(SocketImpl.class, us)
                            .findVarHandle(SocketImpl.class, "fd", FileDescriptor.class);
            Class<?> channel = Class.forName("sun.nio.ch.SocketChannelImpl");
            CHANNEL =
                    MethodHandles.privateLookupIn(channel, us)
                            .findVarHandle(channel, "fdVal", int.class);
        } catch (ReflectiveOperationException error) {
            throw new IllegalStateException("this JDK is not known: " + error, error);
        }
    }

    private Sockets() {}

    private static Connection at(int descriptor) {
        Connection[] all = connections;
        return descriptor >= 0 && descriptor < all.length ? all[descriptor] : null;
    }

    private static synchronized Connection open(int descriptor, boolean serves) {
        Connection made = new Connection(serves);
        if (descriptor >= 0) {
            if (descriptor >= connections.length) {
                connections = Arrays.copyOf(connections, 2 * descriptor);
            }
            connections[descriptor] = made;
        }
        return made;
    }

    private static int number(FileDescriptor descriptor) {
        return descriptor == null ? -1 : (int) DESCRIPTOR.get(descriptor);
    }

    private static int next() {
        int number = LAST.incrementAndGet();
        return number != 0 ? number : LAST.incrementAndGet();
    }

    /** A connection was accepted. Who accepts works for nobody. */
    public static void accepted(int descriptor) {
        try {
            if (descriptor >= 0) {
                open(descriptor, true);
                Here.get().number = 0;
            }
        } catch (Throwable error) {
            Mark.off(error.toString());
        }
    }

    /** See above. */
    public static void accepted(FileDescriptor descriptor) {
        accepted(number(descriptor));
    }

    /** See above. */
    public static void accepted(SocketImpl socket) {
        accepted(number((FileDescriptor) SOCKET.get(socket)));
    }

    /** A connection is being opened, for whom this thread works. */
    public static void connects(int descriptor) {
        try {
            open(descriptor, false).number = Here.get().number;
        } catch (Throwable error) {
            Mark.off(error.toString());
        }
    }

    /** See above; who owns it may have said more. */
    public static void connects(SocketChannel channel) {
        int descriptor = (int) CHANNEL.get(channel);
        Connection connection = at(descriptor);
        WeakReference<SocketChannel> owned = connection == null ? null : connection.owned;
        if (owned == null || owned.get() != channel) {
            connects(descriptor);
        }
    }

    /** See above. */
    public static void connects(SocketImpl socket) {
        connects(number((FileDescriptor) SOCKET.get(socket)));
    }

    /** It is open: what is done now is done for whom it was opened. */
    public static void connected(int descriptor) {
        Connection connection = at(descriptor);
        if (connection != null && !connection.serves) {
            Here.get().number = connection.number;
        }
    }

    /** A client of the JDK's takes a connection for a request of whoever has this number. */
    public static void own(SocketChannel channel, int number) {
        try {
            int descriptor = (int) CHANNEL.get(channel);
            Connection connection = at(descriptor);
            WeakReference<SocketChannel> owned = connection == null ? null : connection.owned;
            if (owned == null || owned.get() != channel) {
                connection = open(descriptor, false);
                connection.owned = new WeakReference<>(channel);
            }
            connection.written = false;
            connection.number = number;
        } catch (Throwable error) {
            Mark.off(error.toString());
        }
    }

    /** Bytes were read from a connection; 0: none yet, less: it has ended. */
    public static void read(int count, int descriptor) {
        try {
            Connection connection = at(descriptor);
            if (connection == null) {
                return;
            }
            if (!connection.serves) {
                if (count > 0) {
                    connection.written = false;
                }
                Here.get().number = connection.number;
                return;
            }
            if (count > 0) {
                if (connection.written) {
                    connection.written = false;
                    connection.number = next();
                }
                Mark.serve(descriptor, connection.number);
            }
            Here.get().number = connection.written ? 0 : connection.number;
        } catch (Throwable error) {
            Mark.off(error.toString());
        }
    }

    /** See above. */
    public static void read(long count, int descriptor) {
        read(Long.signum(count), descriptor);
    }

    /** See above. */
    public static void read(int count, SocketImpl socket) {
        read(count, number((FileDescriptor) SOCKET.get(socket)));
    }

    /** Bytes are about to be written to a connection. */
    public static void write(int descriptor) {
        try {
            Connection connection = at(descriptor);
            if (connection == null) {
                connection = open(descriptor, false);
            }
            if (connection.serves) {
                connection.written = true;
                return;
            }
            if (connection.shared) {
                return;
            }
            int number = connection.owned != null ? connection.number : Here.get().number;
            if (connection.written && number == connection.number) {
                return;
            }
            if (connection.written) {
                connection.shared = true;
                number = 0;
            }
            connection.written = true;
            connection.number = number;
            Mark.call(descriptor, number);
        } catch (Throwable error) {
            Mark.off(error.toString());
        }
    }

    /** See above. */
    public static void write(SocketImpl socket) {
        write(number((FileDescriptor) SOCKET.get(socket)));
    }
}
