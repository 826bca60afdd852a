"""The JVM's opt-in agent: an application sees nothing of it, whatever happens to it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
APPLICATION = """
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.concurrent.*;

public class Application {
    static String of(Callable<?> call) {
        try {
            return String.valueOf(call.call());
        } catch (Throwable error) {
            return error.toString();
        }
    }

    public static void main(String[] words) throws Exception {
        var server = HttpServer.create(new InetSocketAddress("127.0.0.1", 0), 9);
        var pool = Executors.newFixedThreadPool(2);
        server.setExecutor(pool);
        server.createContext("/", exchange -> {
            exchange.sendResponseHeaders(200, 2);
            exchange.getResponseBody().write(new byte[] {'o', 'k'});
            exchange.close();
        });
        server.start();
        var uri = URI.create("http://127.0.0.1:" + server.getAddress().getPort() + "/");
        var client = HttpClient.newHttpClient();
        var request = HttpRequest.newBuilder(uri).build();
        for (int i = 0; i < 3; i++) {
            System.out.println(client.send(request, BodyHandlers.ofString()).body());
            System.out.println(client.sendAsync(request, BodyHandlers.ofString()).get().body());
            System.out.println(new String(uri.toURL().openStream().readAllBytes()));
        }
        Runnable fails = () -> { throw new IllegalStateException("its own"); };
        System.out.println(of(() -> pool.submit(fails).get()));
        System.out.println(
                of(() -> CompletableFuture.supplyAsync(() -> 1 / 0).thenApply(x -> x).get()));
        System.out.println(of(() -> CompletableFuture.supplyAsync(() -> 1, pool)
                .thenCombineAsync(CompletableFuture.supplyAsync(() -> 2), Integer::sum).get()));
        System.out.println(ForkJoinPool.commonPool().invoke(new RecursiveTask<Integer>() {
            protected Integer compute() { return 7; }
        }));
        var scheduled = Executors.newScheduledThreadPool(1);
        var done = new CountDownLatch(3);
        scheduled.scheduleAtFixedRate(done::countDown, 1, 1, TimeUnit.MILLISECONDS);
        done.await();
        // A queued task is found by itself, and taken out.
        var one = new ThreadPoolExecutor(1, 1, 1, TimeUnit.DAYS, new LinkedBlockingQueue<>());
        var busy = new CountDownLatch(1);
        one.execute(() -> of(() -> { busy.await(); return null; }));
        Runnable queued = () -> System.out.println("must not run");
        one.execute(queued);
        System.out.println(one.remove(queued));
        busy.countDown();
        System.out.println(of(() -> { one.shutdown(); one.execute(queued); return null; })
                .startsWith("java.util.concurrent.RejectedExecutionException"));
        Thread.currentThread().interrupt();
        System.out.println(of(() -> client.send(request, BodyHandlers.ofString())));
        System.exit(0);
    }
}
"""
SHARING = "Sharing is only supported for boot loader classes"


def jdks() -> list[Path]:
    """Every `java` of 17 and later on this host, by its real path."""
    found = shutil.which("java")
    places = [Path(found)] if found else []
    places += sorted(Path("/usr/lib/jvm").glob("*/bin/java"))
    return list(dict.fromkeys(each.resolve() for each in places))


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The application, compiled for the oldest JDK that the agent knows."""
    directory = tmp_path_factory.mktemp("classes")
    source = directory / "Application.java"
    source.write_text(APPLICATION)
    subprocess.run(["javac", "--release", "17", "-d", directory, source], check=True, timeout=60)
    return directory


@pytest.fixture(scope="module")
def agent() -> Path:
    built = subprocess.run(
        [ROOT / "scripts" / "java_agent.sh"], check=True, capture_output=True, timeout=300
    )
    return Path(built.stdout.decode().split()[-1])


def runs(java: Path, classes: Path, *options: str) -> tuple[str, str]:
    """Run the application; return its output, and what else was said."""
    argv = [java, *options, "-cp", classes, "Application"]
    env = {key: value for key, value in os.environ.items() if key != "JAVA_TOOL_OPTIONS"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize("java", jdks(), ids=str)
def test_an_application_sees_nothing_of_it(java: Path, classes: Path, agent: Path) -> None:
    plain, _ = runs(java, classes)
    assert plain.count("ok\n") == 9 and "its own" in plain and "must not run" not in plain
    same, said = runs(java, classes, f"-javaagent:{agent}")
    assert same == plain
    # It is on: what it says of itself it says when it is not.
    assert [line for line in said.splitlines() if SHARING not in line] == []


def test_it_turns_itself_off_where_a_class_is_unknown(
    classes: Path, agent: Path, tmp_path: Path
) -> None:
    """Some other software's class by the name of one of Netty's."""
    source = tmp_path / "FileDescriptor.java"
    source.write_text("package io.netty.channel.unix; public class FileDescriptor {}")
    other = tmp_path / "Other.java"
    other.write_text(
        "public class Other { public static void main(String[] a) throws Exception {"
        "new io.netty.channel.unix.FileDescriptor(); Application.main(a); } }"
    )
    argv = ["javac", "-cp", classes, "-d", tmp_path, source, other]
    subprocess.run(argv, check=True, timeout=60)
    plain, _ = runs(jdks()[0], classes)
    argv = ["java", f"-javaagent:{agent}", "-cp", f"{tmp_path}:{classes}", "Other"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, plain), done.stderr
    assert "wirespan-agent: off: io/netty/channel/unix/FileDescriptor" in done.stderr
