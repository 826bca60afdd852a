// SPDX-License-Identifier: Apache-2.0

package wirespan.agent;

import java.lang.instrument.Instrumentation;
import java.util.jar.JarFile;

/**
 * Has the JVM tell wirespan for which request it makes a call:
 *
 * <pre>JAVA_TOOL_OPTIONS=-javaagent:/path/wirespan-agent.jar</pre>
 *
 * <p>This class is loaded with the application's; all others are put where the JDK's own classes
 * are, for those call them. Whatever fails here fails with a line on standard error at most, and
 * the application runs without it.
 */
public final class Agent {
    private Agent() {}

    /** Called by the JVM before main(). */
    public static void premain(String arguments, Instrumentation jvm) {
        try {
            if (!"Linux".equals(System.getProperty("os.name"))) {
                return;
            }
            String jar = Agent.class.getProtectionDomain().getCodeSource().getLocation().getPath();
            jvm.appendToBootstrapClassLoaderSearch(new JarFile(jar));
            Installer.install(jvm, jar);
        } catch (Throwable error) {
            System.err.println("wirespan-agent: off: " + error);
        }
    }
}
