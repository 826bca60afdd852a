// SPDX-License-Identifier: Apache-2.0

package wirespan.agent;

import java.io.IOException;
import java.io.InputStream;
import java.lang.instrument.ClassFileTransformer;
import java.lang.instrument.Instrumentation;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Predicate;
import java.util.jar.JarFile;

/** Sets the weaver on classes that are there already, and on those to come. */
public final class Installer {
    private static final String WEAVER = "wirespan.agent.Weaver";

    private Installer() {}

    /** Starts to weave; throws what keeps it from that. */
    public static void install(Instrumentation jvm, String jar) throws Throwable {
        Module us = Mark.class.getModule();
        open(jvm, Object.class.getModule(), us);
        ModuleLayer.boot().findModule("java.net.http").ifPresent(http -> open(jvm, http, us));
        Mark.test();
        Tasks.test();
        Object weaver =
                new Isolated(jar)
                        .loadClass(WEAVER)
                        .getConstructor(Instrumentation.class)
                        .newInstance(jvm);
        jvm.addTransformer((ClassFileTransformer) weaver, true);
        @SuppressWarnings("unchecked")
        Predicate<String> wanted = (Predicate<String>) weaver;
        List<Class<?>> loaded = new ArrayList<>();
        for (Class<?> each : jvm.getAllLoadedClasses()) {
            if (wanted.test(each.getName().replace('.', '/')) && jvm.isModifiableClass(each)) {
                loaded.add(each);
            }
        }
        jvm.retransformClasses(loaded.toArray(new Class<?>[0]));
    }

    /** Lets a module call our classes, and them read what the JDK's own keeps to itself. */
    public static void open(Instrumentation jvm, Module module, Module us) {
        Map<String, Set<Module>> opens = Map.of();
        if (module == Object.class.getModule()) {
            Set<Module> only = Set.of(us);
            opens = Map.of("java.io", only, "java.net", only, "java.nio", only, "sun.nio.ch", only);
        }
        jvm.redefineModule(module, Set.of(us), Map.of(), opens, Set.of(), Map.of());
    }

    /** Loads the weaver and ASM, which are classes of nobody else's. */
    private static final class Isolated extends ClassLoader {
        private final JarFile jar;

        Isolated(String path) throws IOException {
            super(Mark.class.getClassLoader());
            jar = new JarFile(path);
        }

        @Override
        protected Class<?> findClass(String name) throws ClassNotFoundException {
            String file = "isolated/" + name.replace('.', '/') + ".class";
            try (InputStream in = jar.getInputStream(jar.getEntry(file))) {
                byte[] code = in.readAllBytes();
                return defineClass(name, code, 0, code.length);
            } catch (IOException | NullPointerException error) {
                throw new ClassNotFoundException(name, error);
            }
        }
    }
}
