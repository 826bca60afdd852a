// SPDX-License-Identifier: Apache-2.0

package wirespan.agent;

import java.io.FileDescriptor;
import java.lang.invoke.MethodHandle;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.MethodType;

/**
 * Tells the kernel for whom a request is sent, by a system call that does nothing:
 *
 * <pre>msync((descriptor &lt;&lt; 32 | number) &lt;&lt; 12, -what, MS_SYNC)</pre>
 *
 * <p>Its length is rounded up to 0, so that it returns at once; nobody else asks for that.
 * wirespan's hook reads the arguments (enter_msync, ebpf/runtime.bpf.h). Hardly any other system
 * call is used as seldom, so that nobody else pays for the hook.
 */
public final class Mark {
    /** A request with this number is being served on a connection. */
    private static final int SERVE = 0x571;

    /** A request is about to be sent on a connection, on behalf of a number; 0: nobody's. */
    private static final int CALL = 0x572;

    private static final int PAGE_BITS = 12;
    private static final int MOST = 1 << 20; // what is left for a descriptor
    private static final FileDescriptor NONE = new FileDescriptor();
    private static final MethodHandle MSYNC = find();
    private static volatile boolean off;

    private Mark() {}

    private static MethodHandle find() {
        try {
            Class.forName("sun.nio.ch.IOUtil"); // loads the library that it is in
            Class<?> home = Class.forName("java.nio.MappedMemoryUtils");
            return MethodHandles.privateLookupIn(home, MethodHandles.lookup())
                    .findStatic(
                            home,
                            "force0",
                            MethodType.methodType(
                                    void.class, FileDescriptor.class, long.class, long.class));
        } catch (ReflectiveOperationException error) {
            throw new IllegalStateException("this JDK is not known: " + error, error);
        }
    }

    /** Throws what keeps the kernel from being told. */
    public static void test() throws Throwable {
        MSYNC.invokeExact(NONE, 0L, 0L);
    }

    /** Tells nothing from now on: what is known of calls is not all that is needed. */
    public static void off(String why) {
        if (!off) {
            off = true;
            System.err.println("wirespan-agent: off: " + why);
        }
    }

    static void serve(int descriptor, int number) {
        tell(SERVE, descriptor, number);
    }

    static void call(int descriptor, int number) {
        tell(CALL, descriptor, number);
    }

    private static void tell(int what, int descriptor, int number) {
        if (off || descriptor < 0 || descriptor >= MOST) {
            return;
        }
        long told = (long) descriptor << 32 | number & 0xffffffffL;
        try {
            MSYNC.invokeExact(NONE, told << PAGE_BITS, (long) -what);
        } catch (Throwable error) {
            off(error.toString());
        }
    }
}
