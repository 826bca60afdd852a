// SPDX-License-Identifier: Apache-2.0

package wirespan.agent;

import static org.objectweb.asm.Opcodes.ACC_PUBLIC;
import static org.objectweb.asm.Opcodes.ALOAD;
import static org.objectweb.asm.Opcodes.ASM9;
import static org.objectweb.asm.Opcodes.ATHROW;
import static org.objectweb.asm.Opcodes.DUP;
import static org.objectweb.asm.Opcodes.DUP2;
import static org.objectweb.asm.Opcodes.GETFIELD;
import static org.objectweb.asm.Opcodes.INVOKEINTERFACE;
import static org.objectweb.asm.Opcodes.INVOKESTATIC;
import static org.objectweb.asm.Opcodes.INVOKEVIRTUAL;
import static org.objectweb.asm.Opcodes.IRETURN;
import static org.objectweb.asm.Opcodes.PUTFIELD;
import static org.objectweb.asm.Opcodes.RETURN;

import java.lang.instrument.ClassFileTransformer;
import java.lang.instrument.Instrumentation;
import java.security.ProtectionDomain;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.function.Consumer;
import java.util.function.Predicate;
import org.objectweb.asm.ClassReader;
import org.objectweb.asm.ClassVisitor;
import org.objectweb.asm.ClassWriter;
import org.objectweb.asm.MethodVisitor;

/**
 * Puts calls of Sockets and Tasks into the JDK's and Netty's classes, as they are loaded.
 *
 * <p>Only straight code is added, at the beginning of a method, before it returns, or in place of
 * a call, so that a class's frames stay as they are. A class in which a method that is needed is
 * missing is a version that nobody knows, and turns all off.
 */
public final class Weaver implements ClassFileTransformer, Predicate<String> {
    private static final String SOCKETS = "wirespan/agent/Sockets";
    private static final String TASKS = "wirespan/agent/Tasks";
    private static final String MADE = "wirespan/agent/Tasks$Made";
    private static final String NUMBER = "wirespan$number";
    private static final String HTTP = "jdk/internal/net/http/";
    private static final String FUTURE = "java/util/concurrent/CompletableFuture$";

    private enum Where {
        ENTRY,
        EXIT,
        RUN // in place of Runnable.run() and Callable.call()
    }

    /** What is put where in `method`, its name and the beginning of its descriptor. */
    private record Rule(String method, boolean needed, Where where, Consumer<MethodVisitor> code) {}

    private static Rule entry(String method, Consumer<MethodVisitor> code) {
        return new Rule(method, true, Where.ENTRY, code);
    }

    private static Rule exit(String method, Consumer<MethodVisitor> code) {
        return new Rule(method, true, Where.EXIT, code);
    }

    private static Rule run(String method) {
        return new Rule(method, true, Where.RUN, null);
    }

    private static Rule maybe(Rule rule) {
        return new Rule(rule.method, false, rule.where, rule.code);
    }

    // Pieces of code.

    private static Consumer<MethodVisitor> call(String owner, String name, String descriptor) {
        return to -> to.visitMethodInsn(INVOKESTATIC, owner, name, descriptor, false);
    }

    private static Consumer<MethodVisitor> load(int local) {
        return to -> to.visitVarInsn(ALOAD, local);
    }

    private static Consumer<MethodVisitor> field(String owner, String name, String descriptor) {
        return to -> to.visitFieldInsn(GETFIELD, owner, name, descriptor);
    }

    private static Consumer<MethodVisitor> op(int opcode) {
        return to -> to.visitInsn(opcode);
    }

    @SafeVarargs
    @SuppressWarnings("varargs")
    private static Consumer<MethodVisitor> all(Consumer<MethodVisitor>... code) {
        return to -> Arrays.stream(code).forEach(each -> each.accept(to));
    }

    private static Consumer<MethodVisitor> hand(int local) {
        return all(load(local), call(TASKS, "hand", "(Ljava/lang/Object;)V"));
    }

    private static final Consumer<MethodVisitor> ENTER =
            all(load(0), call(TASKS, "enter", "(Ljava/lang/Object;)V"));
    private static final Consumer<MethodVisitor> LEAVE = call(TASKS, "leave", "()V");

    // Classes.

    private static List<Rule> channel(String name) {
        Consumer<MethodVisitor> fd = all(load(0), field(name, "fdVal", "I"));
        Consumer<MethodVisitor> read = all(op(DUP), fd, call(SOCKETS, "read", "(II)V"));
        Consumer<MethodVisitor> write = all(fd, call(SOCKETS, "write", "(I)V"));
        return List.of(
                exit("read(Ljava/nio/ByteBuffer;)I", read),
                exit(
                        "read([Ljava/nio/ByteBuffer;II)J",
                        all(op(DUP2), fd, call(SOCKETS, "read", "(JI)V"))),
                exit("blockingRead([BII", read),
                entry("write(Ljava/nio/ByteBuffer;)I", write),
                entry("write([Ljava/nio/ByteBuffer;II)J", write),
                entry("blockingWriteFully([BII)V", write),
                entry(
                        "connect(Ljava/net/SocketAddress;)Z",
                        all(
                                load(0),
                                call(
                                        SOCKETS,
                                        "connects",
                                        "(Ljava/nio/channels/SocketChannel;)V"))),
                exit("finishConnect()Z", all(fd, call(SOCKETS, "connected", "(I)V"))));
    }

    private static List<Rule> serverChannel() {
        return List.of(
                entry(
                        "finishAccept(Ljava/io/FileDescriptor;",
                        all(load(1), call(SOCKETS, "accepted", "(Ljava/io/FileDescriptor;)V"))));
    }

    private static List<Rule> socket() {
        String it = "(Ljava/net/SocketImpl;)V";
        return List.of(
                exit(
                        "read([BII)I",
                        all(op(DUP), load(0), call(SOCKETS, "read", "(ILjava/net/SocketImpl;)V"))),
                entry("write([BII)V", all(load(0), call(SOCKETS, "write", it))),
                exit(
                        "connect(Ljava/net/SocketAddress;I)V",
                        all(load(0), call(SOCKETS, "connects", it))),
                exit(
                        "accept(Ljava/net/SocketImpl;)V",
                        all(load(1), call(SOCKETS, "accepted", it))));
    }

    private static List<Rule> nettySocket(String name) {
        Consumer<MethodVisitor> fd = nettyDescriptor(name);
        Consumer<MethodVisitor> read = all(op(DUP), fd, call(SOCKETS, "read", "(II)V"));
        Consumer<MethodVisitor> write = all(fd, call(SOCKETS, "write", "(I)V"));
        return List.of(
                maybe(exit("recv(Ljava/nio/ByteBuffer;II)I", read)),
                maybe(exit("recvAddress(JII)I", read)),
                maybe(entry("send(Ljava/nio/ByteBuffer;II)I", write)),
                maybe(entry("sendAddress(JII)I", write)),
                exit("accept([B)I", all(op(DUP), call(SOCKETS, "accepted", "(I)V"))),
                entry(
                        "connect(Ljava/net/SocketAddress;",
                        all(fd, call(SOCKETS, "connects", "(I)V"))),
                exit("finishConnect()Z", all(fd, call(SOCKETS, "connected", "(I)V"))));
    }

    private static List<Rule> nettyFile(String name) {
        Consumer<MethodVisitor> fd = nettyDescriptor(name);
        Consumer<MethodVisitor> read = all(op(DUP), fd, call(SOCKETS, "read", "(II)V"));
        Consumer<MethodVisitor> write = all(fd, call(SOCKETS, "write", "(I)V"));
        return List.of(
                exit("read(Ljava/nio/ByteBuffer;II)I", read),
                exit("readAddress(JII)I", read),
                entry("write(Ljava/nio/ByteBuffer;II)I", write),
                entry("writeAddress(JII)I", write),
                entry("writev([Ljava/nio/ByteBuffer;IIJ)J", write),
                entry("writevAddresses(JI)J", write));
    }

    private static Consumer<MethodVisitor> nettyDescriptor(String name) {
        String file = name.substring(0, name.lastIndexOf('/')) + "/FileDescriptor";
        return all(
                load(0),
                to -> to.visitMethodInsn(INVOKEVIRTUAL, file, "intValue", "()I", false));
    }

    private static final List<Rule> POOL =
            List.of(
                    entry("execute(Ljava/lang/Runnable;)V", hand(1)),
                    run("runWorker("));
    private static final List<Rule> SCHEDULED = List.of(entry("delayedExecute(", hand(1)));
    private static final List<Rule> FORK_JOIN_POOL =
            List.of(
                    entry("execute(Ljava/util/concurrent/ForkJoinTask;)V", hand(1)),
                    entry("execute(Ljava/lang/Runnable;)V", hand(1)),
                    entry("submit(", hand(1)),
                    entry("invoke(Ljava/util/concurrent/ForkJoinTask;)", hand(1)),
                    maybe(entry("lazySubmit(", hand(1))));
    private static final List<Rule> FORK_JOIN_TASK =
            List.of(
                    entry("fork()", hand(0)),
                    entry("invoke()", hand(0)),
                    entry("invokeAll(Ljava/util/concurrent/ForkJoinTask;", hand(0)),
                    entry("doExec()", ENTER),
                    exit("doExec()", LEAVE));
    private static final List<Rule> NETTY_TASKS =
            List.of(maybe(run("safeExecute(")), maybe(run("runTask(")));

    /** Returns what is to be put into a class, null for nothing. */
    private static List<Rule> rules(String name) {
        if (name.startsWith("java/util/concurrent/")) {
            return concurrent(name);
        }
        switch (name) {
            case "sun/nio/ch/SocketChannelImpl":
                return channel(name);
            case "sun/nio/ch/ServerSocketChannelImpl":
                return serverChannel();
            case "sun/nio/ch/NioSocketImpl":
                return socket();
            case HTTP + "MultiExchange":
                return List.of();
            case HTTP + "Http1Exchange":
                return List.of(exit("<init>(L" + HTTP + "Exchange;", Weaver::takesConnection));
            case "org/apache/tomcat/util/threads/ThreadPoolExecutor":
                return POOL;
            default:
        }
        int netty = name.indexOf("io/netty/");
        return netty < 0 ? null : netty(name, name.substring(netty + "io/netty/".length()));
    }

    private static List<Rule> concurrent(String name) {
        String rest = name.substring("java/util/concurrent/".length());
        switch (rest) {
            case "ThreadPoolExecutor":
                return POOL;
            case "ScheduledThreadPoolExecutor":
                return SCHEDULED;
            case "ForkJoinPool":
                return FORK_JOIN_POOL;
            case "ForkJoinTask":
                return FORK_JOIN_TASK;
            case "CompletableFuture$AsyncSupply":
            case "CompletableFuture$AsyncRun":
                return List.of(entry("run()V", ENTER), exit("run()V", LEAVE));
            default:
        }
        if (rest.startsWith("ForkJoinTask$")) {
            return List.of(maybe(run("exec()Z")));
        }
        if (rest.startsWith("CompletableFuture$")) {
            return List.of(
                    maybe(entry("tryFire(I)", ENTER)), maybe(exit("tryFire(I)", LEAVE)));
        }
        return null;
    }

    private static List<Rule> netty(String name, String rest) {
        switch (rest) {
            case "channel/unix/Socket":
                return nettySocket(name);
            case "channel/unix/FileDescriptor":
                return nettyFile(name);
            case "util/concurrent/SingleThreadEventExecutor":
            case "util/concurrent/GlobalEventExecutor":
                return List.of(
                        entry("addTask(Ljava/lang/Runnable;)V", hand(1)),
                        maybe(run("safeExecute(")),
                        maybe(run("runTask(")));
            case "util/concurrent/AbstractEventExecutor":
                return NETTY_TASKS;
            case "util/concurrent/AbstractScheduledEventExecutor":
                String task = name.replace("AbstractScheduledEventExecutor", "ScheduledFutureTask");
                return List.of(entry("schedule(L" + task + ";)", hand(1)));
            case "util/concurrent/DefaultPromise":
                return List.of(
                        entry("notifyListener0(", ENTER), exit("notifyListener0(", LEAVE));
            default:
                return null;
        }
    }

    /** Of these classes each object keeps the number of whom it was made for. */
    private static boolean isMade(String name) {
        switch (name) {
            case HTTP + "MultiExchange":
            case FUTURE + "Completion":
            case FUTURE + "AsyncSupply":
            case FUTURE + "AsyncRun":
                return true;
            default:
                return name.endsWith("io/netty/util/concurrent/DefaultPromise");
        }
    }

    /** Http1Exchange(exchange, connection): the connection's next request is exchange.multi's. */
    private static void takesConnection(MethodVisitor to) {
        String connection = HTTP + "HttpConnection";
        all(
                        load(0),
                        field(HTTP + "Http1Exchange", "connection", "L" + connection + ";"),
                        code ->
                                code.visitMethodInsn(
                                        INVOKEVIRTUAL,
                                        connection,
                                        "channel",
                                        "()Ljava/nio/channels/SocketChannel;",
                                        false),
                        load(1),
                        field(HTTP + "Exchange", "multi", "L" + HTTP + "MultiExchange;"),
                        field(HTTP + "MultiExchange", NUMBER, "I"),
                        call(SOCKETS, "own", "(Ljava/nio/channels/SocketChannel;I)V"))
                .accept(to);
    }

    private static final Module US = Mark.class.getModule();

    private final Instrumentation jvm;

    public Weaver(Instrumentation jvm) {
        this.jvm = jvm;
    }

    @Override
    public boolean test(String name) {
        return rules(name) != null;
    }

    /** Makes sure that what is woven into a class can be called from there. */
    private void reach(ClassLoader loader, Module module) throws ClassNotFoundException {
        if (loader != null && Class.forName(Mark.class.getName(), false, loader) != Mark.class) {
            throw new ClassNotFoundException("its loader has classes of our names");
        }
        if (module != null && module.isNamed() && !module.canRead(US)) {
            Installer.open(jvm, module, US);
        }
    }

    @Override
    public byte[] transform(
            Module module,
            ClassLoader loader,
            String name,
            Class<?> loaded,
            ProtectionDomain domain,
            byte[] bytes) {
        List<Rule> rules = name == null ? null : rules(name);
        if (rules == null) {
            return null;
        }
        try {
            if (isMade(name) && loaded != null) {
                throw new IllegalStateException("loaded before the agent");
            }
            reach(loader, module);
            ClassReader reader = new ClassReader(bytes);
            ClassWriter writer = new ClassWriter(reader, ClassWriter.COMPUTE_MAXS);
            Woven woven = new Woven(writer, name, rules);
            reader.accept(woven, 0);
            for (Rule rule : rules) {
                if (rule.needed && !woven.applied.contains(rule)) {
                    throw new NoSuchMethodException(rule.method);
                }
            }
            return woven.applied.isEmpty() && !isMade(name) ? null : writer.toByteArray();
        } catch (Throwable error) {
            // Half of it would tell the wrong request.
            Mark.off(name + ": " + error);
            return null;
        }
    }

    private static final class Woven extends ClassVisitor {
        private final String name;
        private final List<Rule> rules;
        private final Set<Rule> applied = new HashSet<>();

        Woven(ClassVisitor to, String name, List<Rule> rules) {
            super(ASM9, to);
            this.name = name;
            this.rules = rules;
        }

        @Override
        public void visit(
                int version, int access, String self, String sign, String above, String[] also) {
            String[] interfaces = also;
            if (isMade(name)) {
                interfaces = Arrays.copyOf(also, also.length + 1);
                interfaces[also.length] = MADE;
            }
            super.visit(version, access, self, sign, above, interfaces);
        }

        @Override
        public MethodVisitor visitMethod(
                int access, String method, String descriptor, String sign, String[] thrown) {
            MethodVisitor to = super.visitMethod(access, method, descriptor, sign, thrown);
            if (isMade(name) && method.equals("<init>")) {
                to = new Method(to, new Rule(method, false, Where.EXIT, this::keep));
            }
            for (Rule rule : rules) {
                if ((method + descriptor).startsWith(rule.method)) {
                    to = new Method(to, rule);
                }
            }
            return to;
        }

        private void keep(MethodVisitor to) {
            load(0).accept(to);
            call(TASKS, "here", "()I").accept(to);
            to.visitFieldInsn(PUTFIELD, name, NUMBER, "I");
        }

        @Override
        public void visitEnd() {
            if (isMade(name)) {
                super.visitField(ACC_PUBLIC, NUMBER, "I", null, null).visitEnd();
                MethodVisitor to =
                        super.visitMethod(ACC_PUBLIC, "wirespanNumber", "()I", null, null);
                to.visitCode();
                all(load(0), field(name, NUMBER, "I"), op(IRETURN)).accept(to);
                to.visitMaxs(1, 1);
                to.visitEnd();
            }
            super.visitEnd();
        }

        /** One rule in one method. */
        private final class Method extends MethodVisitor {
            private final Rule rule;

            Method(MethodVisitor to, Rule rule) {
                super(ASM9, to);
                this.rule = rule;
            }

            @Override
            public void visitCode() {
                super.visitCode();
                if (rule.where == Where.ENTRY) {
                    rule.code.accept(mv);
                    applied.add(rule);
                }
            }

            @Override
            public void visitInsn(int opcode) {
                if (rule.where == Where.EXIT
                        && opcode >= IRETURN
                        && opcode <= RETURN
                        && opcode != ATHROW) {
                    rule.code.accept(mv);
                    applied.add(rule);
                }
                super.visitInsn(opcode);
            }

            @Override
            public void visitMethodInsn(
                    int opcode, String owner, String method, String descriptor, boolean of) {
                if (rule.where == Where.RUN && opcode == INVOKEINTERFACE) {
                    if ((owner + method).equals("java/lang/Runnablerun")) {
                        call(TASKS, "run", "(Ljava/lang/Runnable;)V").accept(mv);
                        applied.add(rule);
                        return;
                    }
                    if ((owner + method).equals("java/util/concurrent/Callablecall")) {
                        String same = "(Ljava/util/concurrent/Callable;)Ljava/lang/Object;";
                        call(TASKS, "call", same).accept(mv);
                        applied.add(rule);
                        return;
                    }
                }
                super.visitMethodInsn(opcode, owner, method, descriptor, of);
            }
        }
    }
}
