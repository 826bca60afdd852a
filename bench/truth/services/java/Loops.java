// SPDX-License-Identifier: Apache-2.0

import io.netty.bootstrap.Bootstrap;
import io.netty.bootstrap.ServerBootstrap;
import io.netty.buffer.Unpooled;
import io.netty.channel.Channel;
import io.netty.channel.ChannelFuture;
import io.netty.channel.ChannelHandlerContext;
import io.netty.channel.ChannelInitializer;
import io.netty.channel.ChannelOption;
import io.netty.channel.EventLoop;
import io.netty.channel.EventLoopGroup;
import io.netty.channel.SimpleChannelInboundHandler;
import io.netty.channel.epoll.Epoll;
import io.netty.channel.epoll.EpollEventLoopGroup;
import io.netty.channel.epoll.EpollServerSocketChannel;
import io.netty.channel.epoll.EpollSocketChannel;
import io.netty.channel.nio.NioEventLoopGroup;
import io.netty.channel.socket.SocketChannel;
import io.netty.channel.socket.nio.NioServerSocketChannel;
import io.netty.channel.socket.nio.NioSocketChannel;
import io.netty.handler.codec.http.DefaultFullHttpRequest;
import io.netty.handler.codec.http.DefaultFullHttpResponse;
import io.netty.handler.codec.http.FullHttpRequest;
import io.netty.handler.codec.http.FullHttpResponse;
import io.netty.handler.codec.http.HttpClientCodec;
import io.netty.handler.codec.http.HttpHeaderNames;
import io.netty.handler.codec.http.HttpMethod;
import io.netty.handler.codec.http.HttpObjectAggregator;
import io.netty.handler.codec.http.HttpResponseStatus;
import io.netty.handler.codec.http.HttpServerCodec;
import io.netty.handler.codec.http.HttpVersion;
import io.netty.handler.codec.http.QueryStringDecoder;
import io.netty.util.AttributeKey;
import java.net.InetSocketAddress;
import java.net.URI;
import java.util.ArrayDeque;
import java.util.List;
import java.util.Map;
import java.util.Queue;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.Executor;
import java.util.function.Consumer;

/**
 * A front service of the linking benchmark, on Netty's event loops; ../../workload.py says what
 * one is asked. MODE says how it calls:
 *
 * <ul>
 *   <li>own: from the event loop that serves, each loop with connections of its own
 *   <li>shared: from whichever loop the first idle connection of all belongs to
 * </ul>
 *
 * TRANSPORT is epoll (Netty's own library) or nio (the JDK's).
 */
public final class Loops {
    private static final AttributeKey<Consumer<FullHttpResponse>> TAKER =
            AttributeKey.valueOf("taker");
    private static final int BODY_BYTES = 1 << 16;
    private static final boolean EPOLL =
            !"nio".equals(System.getenv("TRANSPORT")) && Epoll.isAvailable();
    private static final URI UPSTREAM = URI.create(System.getenv("UPSTREAM"));
    private static final int CALLS = Integer.parseInt(System.getenv().getOrDefault("CALLS", "1"));

    /** Connections to the upstream that no call holds. */
    private static final class Pool {
        private final Queue<Channel> idle;
        private final Bootstrap bootstrap = new Bootstrap();

        Pool(EventLoopGroup loops, Queue<Channel> idle) {
            this.idle = idle;
            bootstrap
                    .group(loops)
                    .channel(EPOLL ? EpollSocketChannel.class : NioSocketChannel.class)
                    .option(ChannelOption.TCP_NODELAY, true)
                    .handler(
                            new ChannelInitializer<SocketChannel>() {
                                @Override
                                protected void initChannel(SocketChannel channel) {
                                    channel.pipeline()
                                            .addLast(new HttpClientCodec())
                                            .addLast(new HttpObjectAggregator(BODY_BYTES))
                                            .addLast(new Answers());
                                }
                            });
        }

        /** Sends a request; `taker` gets the answer in the connection's loop, null for none. */
        void call(String path, Consumer<FullHttpResponse> taker) {
            Channel channel = idle.poll();
            while (channel != null && !channel.isActive()) {
                channel = idle.poll();
            }
            if (channel != null) {
                send(channel, path, taker);
                return;
            }
            bootstrap
                    .connect(UPSTREAM.getHost(), UPSTREAM.getPort())
                    .addListener(
                            (ChannelFuture connected) -> {
                                if (connected.isSuccess()) {
                                    send(connected.channel(), path, taker);
                                } else {
                                    connected.cause().printStackTrace();
                                    taker.accept(null);
                                }
                            });
        }

        private void send(Channel channel, String path, Consumer<FullHttpResponse> taker) {
            FullHttpRequest request =
                    new DefaultFullHttpRequest(HttpVersion.HTTP_1_1, HttpMethod.GET, path);
            request.headers().set(HttpHeaderNames.HOST, UPSTREAM.getAuthority());
            channel.attr(TAKER)
                    .set(
                            answer -> {
                                if (answer != null) {
                                    idle.add(channel);
                                }
                                taker.accept(answer);
                            });
            channel.writeAndFlush(request);
        }
    }

    /** Hands an answer to who waits for it. */
    private static final class Answers extends SimpleChannelInboundHandler<FullHttpResponse> {
        @Override
        protected void channelRead0(ChannelHandlerContext context, FullHttpResponse answer) {
            context.channel().attr(TAKER).getAndSet(null).accept(answer);
        }

        @Override
        public void channelInactive(ChannelHandlerContext context) {
            Consumer<FullHttpResponse> taker = context.channel().attr(TAKER).getAndSet(null);
            if (taker != null) {
                taker.accept(null);
            }
        }
    }

    /** Makes the calls of each request, one after the other. */
    private static final class Front extends SimpleChannelInboundHandler<FullHttpRequest> {
        private final Pool pool;

        Front(Pool pool) {
            this.pool = pool;
        }

        @Override
        protected void channelRead0(ChannelHandlerContext context, FullHttpRequest request) {
            QueryStringDecoder asked = new QueryStringDecoder(request.uri());
            String id = asked.path().substring("/t/".length());
            List<String> given = asked.parameters().get("d");
            String[] delays = given == null ? new String[0] : given.get(0).split(",");
            next(context, id, delays, 0);
        }

        private void next(ChannelHandlerContext context, String id, String[] delays, int k) {
            if (k == CALLS) {
                answer(context, HttpResponseStatus.OK, id);
                return;
            }
            String path = "/u/" + id + "/" + k + "?d=" + (k < delays.length ? delays[k] : "0");
            pool.call(
                    path,
                    answer -> {
                        if (answer == null || answer.status().code() != 200) {
                            answer(context, HttpResponseStatus.BAD_GATEWAY, id);
                        } else {
                            next(context, id, delays, k + 1);
                        }
                    });
        }

        private static void answer(
                ChannelHandlerContext context, HttpResponseStatus status, String text) {
            FullHttpResponse response =
                    new DefaultFullHttpResponse(
                            HttpVersion.HTTP_1_1, status, Unpooled.wrappedBuffer(text.getBytes()));
            response.headers().set(HttpHeaderNames.CONTENT_LENGTH, text.length());
            context.writeAndFlush(response);
        }

        @Override
        public void exceptionCaught(ChannelHandlerContext context, Throwable error) {
            error.printStackTrace();
            context.close();
        }
    }

    private static EventLoopGroup loops(int count) {
        return EPOLL
                ? new EpollEventLoopGroup(count, (Executor) null)
                : new NioEventLoopGroup(count, (Executor) null);
    }

    public static void main(String[] args) throws InterruptedException {
        boolean shared = "shared".equals(System.getenv("MODE"));
        EventLoopGroup serving = loops(2);
        Pool ofAll = new Pool(serving, new ConcurrentLinkedQueue<>());
        Map<EventLoop, Pool> pools = new ConcurrentHashMap<>();
        new ServerBootstrap()
                .group(loops(1), serving)
                .channel(EPOLL ? EpollServerSocketChannel.class : NioServerSocketChannel.class)
                .option(ChannelOption.SO_BACKLOG, 1024)
                .childOption(ChannelOption.TCP_NODELAY, true)
                .childHandler(
                        new ChannelInitializer<SocketChannel>() {
                            @Override
                            protected void initChannel(SocketChannel channel) {
                                Pool pool =
                                        shared
                                                ? ofAll
                                                : pools.computeIfAbsent(
                                                        channel.eventLoop(),
                                                        loop -> new Pool(loop, new ArrayDeque<>()));
                                channel.pipeline()
                                        .addLast(new HttpServerCodec())
                                        .addLast(new HttpObjectAggregator(BODY_BYTES))
                                        .addLast(new Front(pool));
                            }
                        })
                .bind(new InetSocketAddress("127.0.0.1", Integer.parseInt(System.getenv("PORT"))))
                .sync();
        System.out.println("ready");
    }
}
