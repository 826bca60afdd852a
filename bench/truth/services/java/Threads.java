// SPDX-License-Identifier: Apache-2.0

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.InputStream;
import java.net.HttpURLConnection;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.ForkJoinPool;

/**
 * A front service of the linking benchmark, with a pool of threads that serve; ../../workload.py
 * says what one is asked. MODE says how it calls:
 *
 * <ul>
 *   <li>httpclient: HttpClient.send in the thread that serves (it writes from threads of its own)
 *   <li>urlconnection: HttpURLConnection in the thread that serves
 *   <li>executor: the same handed to another pool of threads
 *   <li>virtual: the same handed to a virtual thread of its own (Java 21)
 *   <li>async: HttpClient.sendAsync, as one of several stages that run in the common pool
 * </ul>
 *
 * SERVING says what threads serve: fixed (so many that none waits), forkjoin, or virtual (Java 21).
 */
public final class Threads {
    private static final int SERVING = 200;
    private static final int CALLING = 32;
    private static final String UPSTREAM = System.getenv("UPSTREAM");

    private interface Call {
        void make(String id, int k, String delay) throws Exception;
    }

    private static URI address(String id, int k, String delay) {
        return URI.create(UPSTREAM + "/u/" + id + "/" + k + "?d=" + delay);
    }

    private static void check(int status) throws IOException {
        if (status != 200) {
            throw new IOException("upstream: " + status);
        }
    }

    private static Call httpClient() {
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        return (id, k, delay) -> {
            HttpRequest request = HttpRequest.newBuilder(address(id, k, delay)).build();
            check(client.send(request, HttpResponse.BodyHandlers.ofByteArray()).statusCode());
        };
    }

    private static void urlConnection(String id, int k, String delay) throws IOException {
        HttpURLConnection connection =
                (HttpURLConnection) address(id, k, delay).toURL().openConnection();
        check(connection.getResponseCode());
        // Read to its end, the connection is kept for the next call.
        try (InputStream body = connection.getInputStream()) {
            body.readAllBytes();
        }
    }

    private static Call executor(ExecutorService pool) {
        return (id, k, delay) ->
                pool.submit(
                                () -> {
                                    urlConnection(id, k, delay);
                                    return id;
                                })
                        .get();
    }

    private static Call async() {
        HttpClient client = HttpClient.newHttpClient();
        return (id, k, delay) ->
                CompletableFuture.supplyAsync(() -> address(id, k, delay))
                        .thenCompose(
                                uri ->
                                        client.sendAsync(
                                                HttpRequest.newBuilder(uri).build(),
                                                HttpResponse.BodyHandlers.ofString()))
                        .thenAcceptAsync(
                                response -> {
                                    if (response.statusCode() != 200) {
                                        throw new IllegalStateException("upstream failed");
                                    }
                                })
                        .get();
    }

    private static Call call(String mode) throws ReflectiveOperationException {
        return switch (mode) {
            case "httpclient" -> httpClient();
            case "urlconnection" -> Threads::urlConnection;
            case "executor" -> executor(Executors.newFixedThreadPool(CALLING));
            case "virtual" -> executor(threads(mode));
            case "async" -> async();
            default -> throw new IllegalArgumentException("no such MODE: " + mode);
        };
    }

    private static void serve(HttpExchange exchange, Call call, int calls) throws IOException {
        URI asked = exchange.getRequestURI();
        String id = asked.getPath().substring("/t/".length());
        String query = asked.getQuery();
        String[] delays = query == null ? new String[0] : query.replaceFirst("^d=", "").split(",");
        int status = 200;
        try (exchange) {
            try {
                for (int k = 0; k < calls; k++) {
                    call.make(id, k, k < delays.length ? delays[k] : "0");
                }
            } catch (Exception error) {
                error.printStackTrace();
                status = 502;
            }
            byte[] body = id.getBytes();
            exchange.sendResponseHeaders(status, body.length);
            exchange.getResponseBody().write(body);
        }
    }

    private static ExecutorService threads(String kind) throws ReflectiveOperationException {
        return switch (kind) {
            case "fixed" -> Executors.newFixedThreadPool(SERVING);
            case "forkjoin" -> new ForkJoinPool(SERVING);
            case "virtual" ->
                    (ExecutorService)
                            Executors.class
                                    .getMethod("newVirtualThreadPerTaskExecutor")
                                    .invoke(null);
            default -> throw new IllegalArgumentException("no such SERVING: " + kind);
        };
    }

    public static void main(String[] args) throws IOException, ReflectiveOperationException {
        // Without this each answer waits for the ACK of its header.
        System.setProperty("sun.net.httpserver.nodelay", "true");
        // How many idle connections either side keeps.
        System.setProperty("sun.net.httpserver.maxIdleConnections", "1000");
        System.setProperty("http.maxConnections", "256");
        int port = Integer.parseInt(System.getenv("PORT"));
        int calls = Integer.parseInt(System.getenv().getOrDefault("CALLS", "1"));
        Call call = call(System.getenv().getOrDefault("MODE", "httpclient"));
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 1024);
        server.setExecutor(threads(System.getenv().getOrDefault("SERVING", "fixed")));
        server.createContext("/t/", exchange -> serve(exchange, call, calls));
        server.start();
        System.out.println("ready");
    }
}
