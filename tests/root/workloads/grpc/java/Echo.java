// SPDX-License-Identifier: Apache-2.0

import io.grpc.CallOptions;
import io.grpc.ClientCall;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.ServerServiceDefinition;
import io.grpc.Status;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.stub.ServerCalls;
import io.grpc.stub.StreamObserver;
import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.net.InetSocketAddress;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;

/**
 * grpc-java's server and client of the service that ../README.md describes.
 *
 * <pre>
 * java Echo.java serve
 * java Echo.java call PORT CONNECTIONS
 * </pre>
 */
public final class Echo {
    private static final String SERVICE = "wirespan.test.Echo";
    private static final ScheduledExecutorService TIMER =
            Executors.newSingleThreadScheduledExecutor();

    /** Passes messages on as they are. */
    private static final MethodDescriptor.Marshaller<byte[]> BYTES =
            new MethodDescriptor.Marshaller<>() {
                @Override
                public InputStream stream(byte[] value) {
                    return new ByteArrayInputStream(value);
                }

                @Override
                public byte[] parse(InputStream stream) {
                    try {
                        return stream.readAllBytes();
                    } catch (IOException error) {
                        throw new RuntimeException(error);
                    }
                }
            };

    private static MethodDescriptor<byte[], byte[]> method(String name, MethodType type) {
        return MethodDescriptor.newBuilder(BYTES, BYTES)
                .setFullMethodName(SERVICE + "/" + name)
                .setType(type)
                .build();
    }

    private static int number(byte[] message) {
        return Integer.parseInt(new String(message));
    }

    private static RuntimeException failure(byte[] message, String description) {
        return Status.fromCodeValue(number(message))
                .withDescription(description)
                .asRuntimeException();
    }

    private static void reply(StreamObserver<byte[]> replies, byte[] message) {
        replies.onNext(message);
        replies.onCompleted();
    }

    private static void spread(byte[] request, StreamObserver<byte[]> replies) {
        for (int n = 0; n < number(request); n++) {
            replies.onNext(Integer.toString(n).getBytes());
        }
        replies.onCompleted();
    }

    private static void late(byte[] request, StreamObserver<byte[]> replies) {
        replies.onNext("first".getBytes());
        replies.onNext("second".getBytes());
        replies.onError(failure(request, "as asked for, but late"));
    }

    private static void slow(byte[] request, StreamObserver<byte[]> replies) {
        TIMER.schedule(
                () -> {
                    try {
                        reply(replies, "at last".getBytes());
                    } catch (RuntimeException cancelled) {
                        // Nobody waits for it any more.
                    }
                },
                number(request),
                TimeUnit.MILLISECONDS);
    }

    /** Counts, or echoes, what a client streams. */
    private static final class Requests implements StreamObserver<byte[]> {
        private final StreamObserver<byte[]> replies;
        private final boolean echo;
        private int count;

        Requests(StreamObserver<byte[]> replies, boolean echo) {
            this.replies = replies;
            this.echo = echo;
        }

        @Override
        public void onNext(byte[] message) {
            count++;
            if (echo) {
                replies.onNext(message);
            }
        }

        @Override
        public void onError(Throwable cancelled) {}

        @Override
        public void onCompleted() {
            if (!echo) {
                replies.onNext(Integer.toString(count).getBytes());
            }
            replies.onCompleted();
        }
    }

    private static void serve() throws Exception {
        ServerServiceDefinition service =
                ServerServiceDefinition.builder(SERVICE)
                        .addMethod(
                                method("Say", MethodType.UNARY),
                                ServerCalls.asyncUnaryCall((in, out) -> reply(out, in)))
                        .addMethod(
                                method("Fail", MethodType.UNARY),
                                ServerCalls.asyncUnaryCall(
                                        (in, out) -> out.onError(failure(in, "as asked for"))))
                        .addMethod(
                                method("Slow", MethodType.UNARY),
                                ServerCalls.asyncUnaryCall(Echo::slow))
                        .addMethod(
                                method("Spread", MethodType.SERVER_STREAMING),
                                ServerCalls.asyncServerStreamingCall(Echo::spread))
                        .addMethod(
                                method("Late", MethodType.SERVER_STREAMING),
                                ServerCalls.asyncServerStreamingCall(Echo::late))
                        .addMethod(
                                method("Gather", MethodType.CLIENT_STREAMING),
                                ServerCalls.asyncClientStreamingCall(
                                        out -> new Requests(out, false)))
                        .addMethod(
                                method("Chat", MethodType.BIDI_STREAMING),
                                ServerCalls.asyncBidiStreamingCall(out -> new Requests(out, true)))
                        .build();
        var server =
                NettyServerBuilder.forAddress(new InetSocketAddress("127.0.0.1", 0))
                        .maxInboundMessageSize(1 << 30)
                        .addService(service)
                        .build()
                        .start();
        System.out.println(server.getPort());
        server.awaitTermination();
    }

    /** Makes call number n of a kind; returns what is printed of it. */
    private static String exchange(ManagedChannel channel, String kind, int n, int size)
            throws Exception {
        byte[] payload = "x".repeat(size).getBytes();
        byte[] code = Integer.toString(1 + n % 16).getBytes();
        String name = "Say";
        byte[] message = payload;
        int count = 1;
        long timeout = 30000;
        switch (kind) {
            case "server" -> {
                name = "Spread";
                message = Integer.toString(n % 5).getBytes();
            }
            case "client" -> {
                name = "Gather";
                count = n % 5;
            }
            case "bidi" -> {
                name = "Chat";
                count = n % 5;
            }
            case "fail" -> {
                name = "Fail";
                message = code;
            }
            case "late" -> {
                name = "Late";
                message = code;
            }
            case "unknown" -> name = "Unknown";
            case "slow" -> {
                name = "Slow";
                message = "300".getBytes();
            }
            case "deadline" -> {
                name = "Slow";
                message = "10000".getBytes();
                timeout = 100;
            }
            case "cancel" -> name = "Chat";
            default -> {}
        }
        CompletableFuture<Status> end = new CompletableFuture<>();
        int[] received = {0};
        ClientCall<byte[], byte[]> call =
                channel.newCall(
                        method(name, MethodType.BIDI_STREAMING),
                        CallOptions.DEFAULT.withDeadlineAfter(timeout, TimeUnit.MILLISECONDS));
        call.start(
                new ClientCall.Listener<>() {
                    @Override
                    public void onMessage(byte[] reply) {
                        received[0]++;
                        if (kind.equals("cancel")) {
                            call.cancel("as asked for", null);
                        }
                    }

                    @Override
                    public void onClose(Status status, Metadata trailers) {
                        end.complete(status);
                    }
                },
                new Metadata());
        call.request(Integer.MAX_VALUE);
        for (int i = 0; i < count; i++) {
            call.sendMessage(message);
        }
        if (!kind.equals("cancel")) {
            call.halfClose();
        }
        return String.format(
                "{\"method\": \"%s/%s\", \"status\": \"%s\", \"sent\": %d, \"received\": %d}",
                SERVICE, name, end.get().getCode(), count, received[0]);
    }

    private static List<ManagedChannel> dial(int port, int connections) {
        List<ManagedChannel> channels = new ArrayList<>();
        for (int i = 0; i < connections; i++) {
            channels.add(
                    NettyChannelBuilder.forAddress("127.0.0.1", port)
                            .usePlaintext()
                            .maxInboundMessageSize(1 << 30)
                            .build());
        }
        return channels;
    }

    private static void call(int port, int connections) throws Exception {
        List<ManagedChannel> channels = dial(port, connections);
        var lines = new BufferedReader(new InputStreamReader(System.in));
        String line;
        while ((line = lines.readLine()) != null) {
            String[] words = line.split(" ");
            String kind = words[0];
            int size = Integer.parseInt(words[3]);
            if (kind.equals("reconnect")) {
                channels.forEach(ManagedChannel::shutdownNow);
                channels = dial(port, connections);
            }
            var pool = Executors.newFixedThreadPool(Integer.parseInt(words[2]));
            List<Future<String>> results = new ArrayList<>();
            for (int i = 0; i < Integer.parseInt(words[1]); i++) {
                int n = i;
                ManagedChannel channel = channels.get(n % connections);
                results.add(pool.submit(() -> exchange(channel, kind, n, size)));
            }
            for (Future<String> result : results) {
                System.out.println(result.get());
            }
            pool.shutdown();
            System.out.println();
        }
        System.exit(0);
    }

    public static void main(String[] args) throws Exception {
        if (args[0].equals("serve")) {
            serve();
        } else {
            call(Integer.parseInt(args[1]), Integer.parseInt(args[2]));
        }
    }
}
