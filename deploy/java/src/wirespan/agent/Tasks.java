// SPDX-License-Identifier: Apache-2.0

package wirespan.agent;

import java.lang.ref.Reference;
import java.lang.ref.ReferenceQueue;
import java.lang.ref.WeakReference;
import java.util.concurrent.Callable;
import java.util.concurrent.ConcurrentHashMap;

/**
 * What is handed from one thread to another, and for which request it is to be done: that of
 * whoever handed it over. What nobody is known to have handed over is done for nobody.
 */
public final class Tasks {
    /** What says itself for which request it was made. */
    public interface Made {
        /** Returns the number that here() returned when it was made. */
        int wirespanNumber();
    }

    private static final ConcurrentHashMap<Task, Task> HANDED = new ConcurrentHashMap<>();
    private static final ReferenceQueue<Object> GONE = new ReferenceQueue<>();

    private Tasks() {}

    /** An object, looked up by what it is rather than by what it equals. */
    private static final class Task extends WeakReference<Object> {
        private final int hash;
        private volatile int number;

        Task(Object object, ReferenceQueue<Object> queue) {
            super(object, queue);
            hash = System.identityHashCode(object);
        }

        @Override
        public int hashCode() {
            return hash;
        }

        @Override
        public boolean equals(Object other) {
            if (this == other) {
                return true;
            }
            Object mine = get();
            return mine != null && other instanceof Task && mine == ((Task) other).get();
        }
    }

    /** Uses all that is here once, so that nothing need be loaded at a bad time. */
    public static void test() {
        int entered = Here.get().enter(1);
        Object task = new Object();
        hand(task);
        boolean found = begun(task) == 1 && begun(task) == 0;
        Here.get().back(entered);
        if (!found) {
            throw new IllegalStateException("its own test failed");
        }
    }

    /** Returns the number of the request that this thread works for. */
    public static int here() {
        return Here.get().number;
    }

    /** A task is handed over; if it waits for another already, whose it is can't be told. */
    public static void hand(Object task) {
        try {
            int number = Here.get().number;
            if (task == null || task instanceof Made || number == 0 && HANDED.isEmpty()) {
                return;
            }
            for (Reference<?> gone; (gone = GONE.poll()) != null; ) {
                HANDED.remove(gone);
            }
            Task key = new Task(task, GONE);
            key.number = number;
            Task known = number == 0 ? HANDED.get(key) : HANDED.putIfAbsent(key, key);
            if (known != null && known.number != number) {
                known.number = 0;
            }
        } catch (Throwable error) {
            Mark.off(error.toString());
        }
    }

    private static int begun(Object task) {
        if (task instanceof Made) {
            return ((Made) task).wirespanNumber();
        }
        if (task == null || HANDED.isEmpty()) {
            return 0;
        }
        Task known = HANDED.remove(new Task(task, null));
        return known == null ? 0 : known.number;
    }

    /** A task begins on this thread; leave() ends it. */
    public static void enter(Object task) {
        int number = 0;
        try {
            number = begun(task);
        } catch (Throwable error) {
            Mark.off(error.toString());
        }
        Here.get().enter(number);
    }

    /** What was entered last on this thread is done. */
    public static void leave() {
        Here.get().leave();
    }

    /** Runs a task for whom it was handed over. */
    public static void run(Runnable task) {
        Here here = Here.get();
        int entered = here.enter(begun(task));
        try {
            task.run();
        } finally {
            here.back(entered);
        }
    }

    /** Calls a task for whom it was handed over. */
    public static Object call(Callable<?> task) throws Exception {
        Here here = Here.get();
        int entered = here.enter(begun(task));
        try {
            return task.call();
        } finally {
            here.back(entered);
        }
    }
}
